"""Each mutation finds what it disables: one that no longer does would make the chaos suite pass for the wrong reason."""

import subprocess
import sys

SCRIPT = """
from tests.chaos.mutations import MUTATIONS
from bus.amqp import publisher
from bus.amqp.raw_properties import decode_plain_properties
from bus.amqp.publisher import Publisher
from bus.persistence.group_commit import GroupCommit
from bus.persistence.inbox import SQL, NullInbox, PostgresInbox
from bus.worker import consumer, resources
from bus.worker.consumer import DeliveryConsumer

def safeguards():
    yield from (Publisher.publish, DeliveryConsumer.on_message, consumer._acknowledge, resources.open_inbox)
    yield from (NullInbox._write_group, GroupCommit._put_back, PostgresInbox._is_done, SQL["acquire"])

before = set(safeguards())
for mutation in MUTATIONS.values():
    mutation.apply()
assert not before & set(safeguards())
assert decode_plain_properties(publisher.encode_properties(delivery_mode=2)).delivery_mode == 1
"""


def test_mutations_replace_what_the_code_uses() -> None:
    """In a process of their own, which they change for good."""
    finished = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
