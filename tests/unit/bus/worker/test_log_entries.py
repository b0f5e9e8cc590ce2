"""The log entry of a delivery."""

from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from bus.delivery import Delivery, Origin
from bus.outcome import Dropped, Outcome, Requeue
from bus.worker.consumer import _log_outcome
from bus.worker.outgoing import StepRun
from contracts.fault import Fault

DELIVERY = Delivery(
    body=b"{}",
    queue="atelier.embed",
    message_id="m",
    job_id="j",
    origin=Origin("atelier.embed", "atelier.commands", "embed"),
    tenant="acme",
)
FAULT = Fault(code="prompt-too-long", message="divide it", step="embed")


@pytest.mark.parametrize("outcome", [Dropped(FAULT), Requeue("the engine does not start")])
def test_device_seconds_are_logged_with_their_tenant(outcome: Outcome) -> None:
    """Also where no event has them; without a device there are none."""
    for seconds, expected in ((0.25, {"device_seconds": 0.25, "tenant": "acme"}), (None, {})):
        with capture_logs() as entries:
            _log_outcome(StepRun(DELIVERY, "embed", "w", None, datetime.now(UTC), device_seconds=seconds), outcome)
        [entry] = entries
        assert {name: entry[name] for name in ("device_seconds", "tenant") if name in entry} == expected
