"""A worker process of a chaos run: `python -m tests.chaos.worker JOURNAL STEP…`. The step `image` is served by the fake image actor."""

import sys
from pathlib import Path

from bus.observability.logs import configure_logging
from bus.worker.adapter import AdapterConsumer
from bus.worker.consumer import DeliveryConsumer
from tests.chaos.journal import write_journal
from tests.chaos.mutations import apply_mutation
from tests.support.crash_points import serve_steps


def main(journal: str, *steps: str) -> None:
    configure_logging()
    apply_mutation()
    write_journal(Path(journal), DeliveryConsumer, AdapterConsumer)
    serve_steps(*steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
