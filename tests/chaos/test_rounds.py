"""What a round and its oracle conclude, without services."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.wire import Header
from tests.chaos import oracle
from tests.chaos.journal import BEGUN, DECIDED, ENDED, REDELIVERED, DeliveryCounts
from tests.chaos.oracle import Oracle, command_with_deadline, image_order
from tests.chaos.rounds import RoundResult

CLEAN = RoundResult("broker-killed", 6, 6, 5, 0, 0, 0, 1, 0, 0, 0, 0, 3, 0.1, 1.0, met=7)


@pytest.mark.parametrize("field", ["lost", "duplicated", "unexpected", "left_in_queues", "unrecorded", "expired", "hostile_lost"])
def test_round_with_a_problem_is_not_clean(field: str) -> None:
    assert CLEAN.clean
    assert not replace(CLEAN, **{field: 1}).clean


def test_round_whose_fault_has_met_nothing_is_not_clean() -> None:
    missed = replace(CLEAN, met=0)
    assert (missed.missed, missed.clean) == (True, False)
    assert replace(CLEAN, met=None).clean


def test_round_whose_steps_were_silent_under_attack_is_not_clean() -> None:
    attacked = replace(CLEAN, hostile=3)
    assert replace(attacked, longest_silence_seconds=4.9).clean
    assert not replace(attacked, longest_silence_seconds=5.1).clean


def test_order_with_a_deadline_is_a_command() -> None:
    message = command_with_deadline(image_order(7, "quiet"), 4.0)
    assert (message.correlation_id, list(message.headers)) == ("generation-7", [Header.DEADLINE])


def test_journal_counts_the_stages_of_deliveries(tmp_path: Any) -> None:
    journal = tmp_path / "journal"
    assert DeliveryCounts.read(journal) == DeliveryCounts()
    journal.write_bytes(BEGUN + DECIDED + ENDED + BEGUN + REDELIVERED + DECIDED + BEGUN)
    counts = DeliveryCounts.read(journal)
    assert (counts, counts.in_progress) == (DeliveryCounts(begun=3, redelivered=1, decided=2, ended=1), 2)


@pytest.mark.parametrize(("messages", "gives_up_early"), [(0, True), (1, False)])
async def test_wait_for_a_lost_order_ends_when_no_message_is_left(
    monkeypatch: pytest.MonkeyPatch, messages: int, gives_up_early: bool
) -> None:
    """With a message that is left it ends after the time limit alone."""
    monkeypatch.setattr(oracle, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(oracle, "QUEUE_REPORT_SECONDS", 0.1)
    unavailable = SimpleNamespace(url="amqp://127.0.0.1:1/")
    environment: Any = SimpleNamespace(
        backend=SimpleNamespace(requests=[]), hostile_bodies=set(), node=unavailable, postgres=unavailable, count_messages=lambda: messages
    )
    lost = Oracle(environment, confirmed=[1])
    started = asyncio.get_running_loop().time()
    await lost.wait_until_finished(8.0)
    assert lost.unfinished_orders() == {1}
    assert (asyncio.get_running_loop().time() - started < 8.0) == gives_up_early
