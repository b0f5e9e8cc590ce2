"""Safety mechanisms disabled one at a time: `python -m tests.chaos.mutations [NAME…]` expects a chaos round or a test to fail with each."""

import argparse
import asyncio
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aio_pika.abc import AbstractIncomingMessage, DeliveryMode
from faststream.rabbit import QueueType

from benchmarks.processes import run_command
from bus.amqp import acknowledgements, broker, publisher, topology
from bus.amqp.messages import OutboundMessage
from bus.amqp.raw_properties import encode_properties
from bus.outcome import Outcome
from bus.persistence import inbox
from bus.persistence.group_commit import GroupCommit
from bus.persistence.inbox import Inbox, NullInbox, PostgresInbox
from bus.worker import consumer, resources
from bus.worker.consumer import DeliveryConsumer


def no_persistence() -> None:
    """Classic queues, and messages that are not persistent."""

    class ClassicQueues:
        QUORUM = QueueType.CLASSIC

    topology.QUORUM_ARGUMENTS.clear()
    topology.AT_LEAST_ONCE_ARGUMENTS.clear()
    broker.QueueType = ClassicQueues  # type: ignore[misc,assignment]

    def transient_properties(**properties: Any) -> bytes:
        return encode_properties(**properties | {"delivery_mode": DeliveryMode.NOT_PERSISTENT})

    publisher.encode_properties = transient_properties  # type: ignore[attr-defined,assignment]


def ack_first() -> None:
    on_message = DeliveryConsumer.on_message

    async def ack_and_process(self: DeliveryConsumer, message: AbstractIncomingMessage) -> None:
        acknowledgements.ack(message)
        await on_message(self, message)

    async def acknowledge_nothing(_: AbstractIncomingMessage, __: Outcome) -> None:
        """A second ack would close the channel."""

    DeliveryConsumer.on_message = ack_and_process  # type: ignore[method-assign]
    consumer._acknowledge = acknowledge_nothing


def no_inbox() -> None:
    @asynccontextmanager
    async def open_inbox(pool: Any, locks: Any) -> AsyncIterator[Inbox]:
        yield NullInbox(pool)

    resources.open_inbox = open_inbox  # type: ignore[attr-defined,assignment]


def no_confirms() -> None:
    async def publish_unconfirmed(self: publisher.Publisher, *messages: OutboundMessage) -> None:
        for message in messages:
            task = asyncio.create_task(self._publish_one(message))
            task.add_done_callback(lambda finished: finished.cancelled() or finished.exception())

    publisher.Publisher.publish = publish_unconfirmed  # type: ignore[method-assign]


def commit_not_awaited() -> None:
    """The group commit of events answers before its statement is committed."""
    write_group, background = NullInbox._write_group, set[asyncio.Task[Any]]()

    async def answer_at_once(self: NullInbox, writes: Sequence[Any]) -> list[None]:
        background.add(asyncio.create_task(write_group(self, writes)))
        return [None] * len(writes)

    NullInbox._write_group = answer_at_once  # type: ignore[method-assign]


def group_dropped() -> None:
    """A group commit that forgets the group whose connection is lost."""

    def drop(self: GroupCommit[Any, Any], group: Sequence[Any], error: BaseException) -> None:
        """Their callers wait in vain."""

    GroupCommit._put_back = drop  # type: ignore[method-assign]


def living_owner_ignored() -> None:
    inbox.SQL["acquire"], lines = re.subn(r"and \(known\.owner is null or .*", "", inbox.SQL["acquire"])
    assert lines == 1


def lost_ownership_ignored() -> None:
    """A result that finds its message with another owner counts as stored."""

    async def is_done(*_: Any) -> bool:
        return True

    PostgresInbox._is_done = is_done  # type: ignore[method-assign]


@dataclass(frozen=True)
class ChaosMutation:
    """`fault` reveals it, by one of `shows`, counts of the round. `needs_redelivery`: only if messages were delivered again."""

    apply: Callable[[], None]
    fault: str
    shows: tuple[str, ...]
    needs_redelivery: bool = False


@dataclass(frozen=True)
class TestedMutation:
    """Revealed by a test. No fault shows it from outside: a message that runs twice at the same time has its effect once all the same."""

    apply: Callable[[], None]
    test: str


CHAOS_MUTATIONS = {
    "ack-first": ChaosMutation(ack_first, "actors-killed", ("lost", "unrecorded")),
    "no-inbox": ChaosMutation(no_inbox, "actors-killed-under-alarm", ("duplicated",), needs_redelivery=True),
    "no-confirms": ChaosMutation(no_confirms, "actors-killed-under-alarm", ("lost", "unrecorded")),
    "commit-not-awaited": ChaosMutation(commit_not_awaited, "actors-killed-without-database", ("unrecorded",)),
    "no-persistence": ChaosMutation(no_persistence, "broker-killed", ("lost",)),
}
TESTED_MUTATIONS = {
    "group-dropped": TestedMutation(
        group_dropped, "tests/unit/bus/persistence/test_group_commit.py::test_lost_connection_repeats_the_items_in_groups"
    ),
    "living-owner-ignored": TestedMutation(
        living_owner_ignored, "tests/integration/test_inbox.py::test_message_of_live_process_is_not_acquired"
    ),
    "lost-ownership-ignored": TestedMutation(
        lost_ownership_ignored, "tests/integration/test_inbox.py::test_other_result_of_a_message_that_is_done_is_lost_ownership"
    ),
}
MUTATIONS: dict[str, ChaosMutation | TestedMutation] = CHAOS_MUTATIONS | TESTED_MUTATIONS

DETECTED, NOT_DETECTED, MISSED, UNFINISHED = "detected", "NOT DETECTED", "FAULT DID NOT HIT", "DID NOT END"
ORDERS, ORDERS_PER_SECOND = 90, 25.0
FINISH_SECONDS = 60.0
"""So long after the fault an order may take; one that never ends, while a worker has its message, is noticed then."""
ROUND_SECONDS = 240.0
TEST_SECONDS = 180.0
PYTEST_OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--reruns=0", "--tb=line", "-W", "ignore::pytest.PytestAssertRewriteWarning")
MUTATED_PYTEST = (
    "import signal, sys, pytest; signal.signal(signal.SIGTERM, signal.default_int_handler); "  # so that fixtures end their services
    "from tests.chaos import mutations; mutations.apply_mutation(); sys.exit(pytest.main(sys.argv[1:]))"
)


def apply_mutation() -> None:
    """In a worker process: disable the mechanism that the environment names."""
    if name := os.environ.get("ATELIER_MUTATION"):
        MUTATIONS[name].apply()


async def play_mutations(names: Sequence[str], orders: int, seed: int) -> dict[str, str]:
    """Each in a round of its own, on services that are started once."""
    from tests.chaos.environment import open_environment

    verdicts: dict[str, str] = {}
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # the oracle meets the killed broker, too
    async with AsyncExitStack() as stack:
        environment = None
        for name in names:
            started = time.monotonic()
            print_line(f"{name}: {CHAOS_MUTATIONS[name].fault} …")
            if UNFINISHED in verdicts.values():
                verdicts[name], facts = UNFINISHED, "nor began, after one that did not end"
            else:
                if environment is None:
                    folder = Path(stack.enter_context(TemporaryDirectory(prefix="atelier-chaos-")))
                    environment = await stack.enter_async_context(open_environment(folder, replicas=1, with_workers=False))
                verdicts[name], facts = await play_mutation(environment, name, orders, random.Random(seed))
            print_line(f"{name}: {verdicts[name]} after {time.monotonic() - started:.0f} s; {facts}")
    return verdicts


async def play_mutation(environment: Any, name: str, orders: int, rng: random.Random) -> tuple[str, str]:
    """The verdict, and what it rests on."""
    from tests.chaos.rounds import play_round

    mutation = CHAOS_MUTATIONS[name]
    load = {"orders": orders, "per_second": ORDERS_PER_SECOND, "finish_seconds": FINISH_SECONDS}
    try:
        async with asyncio.timeout(ROUND_SECONDS):
            await environment.restart_with(name)
            result = await play_round(environment, mutation.fault, rng=rng, **load)
    except TimeoutError:
        return UNFINISHED, f"within {ROUND_SECONDS:g} s"
    facts = {name: value for name, value in result.as_dict.items() if value and name not in ("name", "recover_seconds", "seconds")}
    facts |= {"met": result.met, "redelivered": result.redelivered}
    if result.missed or (mutation.needs_redelivery and not result.redelivered):
        return MISSED, str(facts)
    return (DETECTED if any(getattr(result, count) for count in mutation.shows) else NOT_DETECTED), str(facts)


def run_test(name: str) -> str:
    """The verdict of its test. An error before or after the test detects nothing."""
    started, mutation = time.monotonic(), TESTED_MUTATIONS[name]
    print_line(f"{name}: {mutation.test} …")
    command = [sys.executable, "-c", MUTATED_PYTEST, *PYTEST_OPTIONS, mutation.test]
    try:
        finished = run_command(command, environment=os.environ | {"ATELIER_MUTATION": name}, timeout=TEST_SECONDS)
        last = (finished.stdout.strip() or finished.stderr.strip()).rpartition("\n")[2]
        verdict = NOT_DETECTED if finished.returncode == 0 else DETECTED if "failed" in last and "error" not in last else MISSED
    except subprocess.TimeoutExpired:
        verdict, last = UNFINISHED, f"within {TEST_SECONDS:g} s"
    print_line(f"{name}: {verdict} after {time.monotonic() - started:.0f} s; {last.strip('= ')}")
    return verdict


def print_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("mutations", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"only these of {', '.join(MUTATIONS)}")
    parser.add_argument("--orders", type=int, default=ORDERS, help="orders of a round")
    parser.add_argument("--seed", type=int, default=5)
    parsed, started = parser.parse_args(arguments), time.monotonic()
    if unknown := set(parsed.name) - set(MUTATIONS):
        parser.error(f"no such mutation: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the services must not outlive this process
    selected = [name for name in MUTATIONS if not parsed.name or name in parsed.name]
    verdicts = {name: run_test(name) for name in selected if name in TESTED_MUTATIONS}
    verdicts |= asyncio.run(play_mutations([name for name in selected if name in CHAOS_MUTATIONS], parsed.orders, parsed.seed))
    detected = sum(verdict == DETECTED for verdict in verdicts.values())
    print_line(f"{detected} of {len(verdicts)} detected in {time.monotonic() - started:.0f} s")
    return 0 if detected == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
