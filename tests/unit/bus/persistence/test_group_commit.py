"""Group commit with a statement that the test controls: what goes together, and what a failure or a cancelled caller changes."""

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest
from structlog.testing import capture_logs

from bus.persistence import group_commit
from bus.persistence.group_commit import GroupCommit


class Statements:
    """Answers each item in capitals. `released` lets the statement under way end; an item that is in `errors` fails its whole group."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.begun, self.released = asyncio.Event(), asyncio.Event()
        self.released.set()
        self.errors: dict[str, list[Exception]] = {}

    async def __call__(self, items: Sequence[str]) -> list[str]:
        self.groups.append(list(items))
        self.begun.set()
        await self.released.wait()
        for item in items:
            if self.errors.get(item):
                raise self.errors[item].pop(0)
        return [item.upper() for item in items]

    async def hold(self, group: GroupCommit[str, str], item: str) -> asyncio.Task[str]:
        """Submit an item, whose statement stays under way until `released` is set."""
        self.released.clear()
        task = asyncio.create_task(group.submit(item))
        await self.begun.wait()
        return task


@pytest.fixture
def statements() -> Statements:
    return Statements()


@pytest.fixture
def group(statements: Statements) -> GroupCommit[str, str]:
    return GroupCommit(statements)


def submit_all(group: GroupCommit[str, str], items: Sequence[str], size: int = 0) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(group.submit(item, size)) for item in items]


async def test_single_item_goes_at_once(group: GroupCommit[str, str], statements: Statements) -> None:
    """A turn of the event loop for the caller's task and one for the group's: nothing waits for a timer."""
    task = asyncio.create_task(group.submit("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert statements.groups == [["a"]]
    assert await task == "A"


async def test_items_of_one_turn_go_together_each_with_its_answer(group: GroupCommit[str, str], statements: Statements) -> None:
    assert await asyncio.gather(*submit_all(group, "abc")) == ["A", "B", "C"]
    assert statements.groups == [["a", "b", "c"]]


async def test_items_that_arrive_meanwhile_go_with_the_next_statement(group: GroupCommit[str, str], statements: Statements) -> None:
    first = await statements.hold(group, "a")
    later = submit_all(group, "bc")
    await asyncio.sleep(0.01)
    assert statements.groups == [["a"]]
    statements.released.set()
    assert await asyncio.gather(first, *later) == ["A", "B", "C"]
    assert statements.groups == [["a"], ["b", "c"]]


async def test_refused_item_fails_alone(group: GroupCommit[str, str], statements: Statements) -> None:
    statements.errors["b"] = [ValueError("of the group"), ValueError("of b alone")]
    answers = await asyncio.gather(*submit_all(group, "abc"), return_exceptions=True)
    assert (answers[0], answers[2]) == ("A", "C")
    assert str(answers[1]) == "of b alone"
    assert statements.groups[0] == ["a", "b", "c"]
    assert sorted(statements.groups[1:]) == [["a"], ["b"], ["c"]]


async def test_lost_connection_repeats_the_items_in_groups(
    group: GroupCommit[str, str], statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each half as large as the one before, until the database responds; those who come meanwhile go before. One warning for a loss."""
    monkeypatch.setattr("bus.retry.FIRST_WAIT_SECONDS", 0.001)
    statements.errors["a"] = [asyncpg.ConnectionDoesNotExistError("closed"), ConnectionResetError("reset")]
    with capture_logs() as logs:
        assert await asyncio.wait_for(asyncio.gather(*submit_all(group, "abcdefgh")), 5) == [*"ABCDEFGH"]
    assert statements.groups == [[*"abcdefgh"], [*"abcd"], [*"ef"], [*"ghabcd"]]
    assert [(log["event"], log["items"], log["wait_seconds"]) for log in logs] == [
        ("dependency.unavailable", 8, 0.001),
        ("dependency.unavailable", 4, 0.002),
    ]


async def test_item_that_always_loses_its_connection_holds_up_no_other(
    group: GroupCommit[str, str], statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.retry.FIRST_WAIT_SECONDS", 0.001)
    statements.errors["a"] = [ConnectionResetError("reset") for _ in range(1000)]
    failing, *others = submit_all(group, "abcdefgh")
    assert await asyncio.wait_for(asyncio.gather(*others), 5) == [*"BCDEFGH"]
    assert not failing.done()
    failing.cancel()


async def test_caller_cancelled_while_the_database_is_away_waits_for_nothing(
    group: GroupCommit[str, str], statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.retry.FIRST_WAIT_SECONDS", 3600.0)
    monkeypatch.setattr("bus.retry.LONGEST_WAIT_SECONDS", 3600.0)
    statements.errors["a"] = [ConnectionResetError("reset")]
    (task,) = submit_all(group, "a")
    await statements.begun.wait()
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait_for(asyncio.wait({task}), 5)
    assert task.cancelled()
    assert statements.groups == [["a"]]


async def test_interrupted_statement_is_repeated_by_its_callers(group: GroupCommit[str, str], statements: Statements) -> None:
    """A statement that is itself cancelled answers its callers: none waits for ever, and none counts as cancelled."""
    statements.released.clear()
    tasks = submit_all(group, "ab")
    await statements.begun.wait()
    assert group._under_way
    group._under_way.cancel()
    statements.released.set()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 5) == ["A", "B"]
    assert statements.groups == [["a", "b"], ["a"], ["b"]]


async def test_failed_group_does_not_hold_up_the_next(group: GroupCommit[str, str], statements: Statements) -> None:
    """An item that the database never takes in time waits by itself, not before all others."""
    statements.errors["b"] = [TimeoutError()] * 100
    failing = submit_all(group, "ab")
    assert await asyncio.wait_for(failing[0], 5) == "A"
    assert await asyncio.wait_for(group.submit("c"), 5) == "C"
    assert not failing[1].done()
    failing[1].cancel()


async def test_caller_cancelled_before_its_statement_is_left_out(group: GroupCommit[str, str], statements: Statements) -> None:
    first = await statements.hold(group, "a")
    later = submit_all(group, "bc")
    await asyncio.sleep(0)
    later[0].cancel()
    statements.released.set()
    assert [await first, await later[1]] == ["A", "C"]
    assert statements.groups == [["a"], ["c"]]
    assert later[0].cancelled()


async def test_callers_all_cancelled_send_nothing(group: GroupCommit[str, str], statements: Statements) -> None:
    first = await statements.hold(group, "a")
    (later,) = submit_all(group, "b")
    await asyncio.sleep(0)
    later.cancel()
    statements.released.set()
    assert await first == "A"
    assert await group.submit("c") == "C"
    assert statements.groups == [["a"], ["c"]]


@pytest.mark.parametrize("refused", [False, True])
async def test_caller_cancelled_during_its_statement_changes_nothing_for_the_others(
    group: GroupCommit[str, str], statements: Statements, refused: bool
) -> None:
    """It waits for the end of the statement, which may still take effect, and repeats nothing."""
    statements.released.clear()
    statements.errors["a"] = [ValueError("of the group")] * refused
    tasks = submit_all(group, "abc")
    await statements.begun.wait()
    for _ in range(2):  # also when it is cancelled again
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        assert not tasks[1].done()
    statements.released.set()
    assert [await tasks[0], await tasks[2]] == ["A", "C"]
    await asyncio.wait({tasks[1]})
    assert tasks[1].cancelled()
    assert ["b"] not in statements.groups


async def test_caller_cancelled_while_it_sends_alone_waits_for_the_end(group: GroupCommit[str, str], statements: Statements) -> None:
    statements.released.clear()
    task = asyncio.create_task(group.send_alone("a"))
    await statements.begun.wait()
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    statements.released.set()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_item_that_is_sent_alone_waits_for_no_group(group: GroupCommit[str, str], statements: Statements) -> None:
    first = await statements.hold(group, "a")
    statements.begun.clear()
    alone = asyncio.create_task(group.send_alone("b"))
    await asyncio.wait_for(statements.begun.wait(), 5)
    statements.released.set()
    assert [await first, await alone] == ["A", "B"]


async def test_group_is_bounded_by_items(group: GroupCommit[str, str], statements: Statements) -> None:
    items = [f"i{number}" for number in range(2 * group_commit.MAX_ITEMS + 1)]
    assert await asyncio.gather(*submit_all(group, items)) == [item.upper() for item in items]
    assert [len(items) for items in statements.groups] == [500, 500, 1]


async def test_group_is_bounded_by_size(group: GroupCommit[str, str], statements: Statements) -> None:
    """Two of the larger ones fill a group; one that is larger than a group goes alone."""
    limit = group_commit.MAX_SIZE
    tasks = [*submit_all(group, "abc", limit // 2), *submit_all(group, "d", 2 * limit), *submit_all(group, "ef", 1)]
    assert await asyncio.gather(*tasks) == [*"ABCDEF"]
    assert (statements.groups, limit) == ([["a", "b"], ["c"], ["d"], ["e", "f"]], 4_000_000)


async def test_answers_that_do_not_match_the_items_fail_the_group() -> None:
    """Rather than an item with the answer of another."""

    async def answer_too_few(items: Sequence[str]) -> list[str]:
        return [item.upper() for item in items[:1]]

    assert await asyncio.gather(*submit_all(GroupCommit(answer_too_few), "ab")) == ["A", "B"]
