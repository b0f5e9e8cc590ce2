"""Random mixes of what processes do to the inbox at the same time, on a real Postgres, against a plain model of it.

In each round every message has at most one caller, so that the model knows the result, whatever the order within the round.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bus.persistence.group_commit import GroupCommit
from bus.persistence.inbox import LIVENESS_LOCK_CLASS, SCHEMA, Acquisition, DoneMessage, InboxEntry, OwnershipLost, PostgresInbox
from bus.persistence.pool import apply_schemas, open_pool
from bus.persistence.session_locks import SessionLocks, connect_session
from bus.settings import BusSettings
from contracts.wire import Result
from tests.support.own_database import with_database

STEP = "echo"
MESSAGES, PROCESSES = 12, 2
BLOCKED_SECONDS = 0.03
IS_LOCKED = "select exists (select from pg_locks where locktype = 'advisory' and objid = $1::integer::oid)"
STORED = "select owner, result, deaths from atelier.inbox where message_id = $1"
APPLICATION = "inbox-model"
TERMINATE_POOL = f"select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{APPLICATION}'"


class Number(Result):
    value: int


@dataclass
class Process:
    """A process and what it believes to own. `alive`: it has its liveness lock.

    `acquired`: entries that a statement acquired; `unanswered`: those of statements that failed, perhaps after their commit.
    """

    inbox: PostgresInbox
    locks: SessionLocks
    running: set[int] = field(default_factory=set)
    alive: bool = True
    acquired: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.inbox._statements = GroupCommit(self.send)

    async def send(self, messages: Sequence[Acquisition | DoneMessage]) -> list[InboxEntry | bool | None]:
        try:
            answers = await self.inbox._send(messages)
        except Exception:
            self.unanswered |= {message.entry_id for message in messages if isinstance(message, Acquisition)}
            raise
        for message, answer in zip(messages, answers, strict=True):
            if isinstance(answer, InboxEntry) and answer.result is None:
                self.acquired.add(message.entry_id)
        return answers


@dataclass
class Row:
    """What the inbox is to know of a message."""

    owner: Process | None = None
    result: int | None = None
    deaths: int = 0


@dataclass(frozen=True)
class Operation:
    """`acquire`, `finish`, `release`, or `cancelled`: an acquisition whose caller is cancelled after `turns` turns of the event loop."""

    message: int
    process: int
    kind: str
    turns: int


@dataclass(frozen=True)
class Round:
    """Operations that happen together; meanwhile connections are lost, after it a process dies."""

    operations: list[Operation]
    lose_connections: bool
    dies: int | None


OPERATIONS = st.builds(
    Operation,
    st.integers(0, MESSAGES - 1),
    st.integers(0, PROCESSES - 1),
    st.sampled_from(["acquire", "acquire", "acquire", "finish", "finish", "release", "cancelled"]),
    st.integers(0, 12),
)
ROUNDS = st.builds(
    Round,
    st.lists(OPERATIONS, min_size=1, max_size=MESSAGES, unique_by=lambda operation: operation.message),
    st.sampled_from([False, False, True]),
    st.sampled_from([None, None, None, *range(PROCESSES)]),
)
RANDOM_MIX = settings(
    max_examples=12,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


async def settle(process: Process) -> None:
    """What was acquired for cancelled callers is released."""
    if process.inbox._background:
        await asyncio.wait(process.inbox._background)


class Mix:
    """The processes, the model of the inbox, and the check of one against the other."""

    def __init__(self, pool: asyncpg.Pool, observer: asyncpg.Pool, url: str, stack: AsyncExitStack) -> None:
        self._pool, self._observer, self._url, self._stack = pool, observer, url, stack
        self._run = uuid4().hex
        self.rows = [Row() for _ in range(MESSAGES)]
        self.processes: list[Process] = []

    def entry_id(self, message: int) -> str:
        return f"{self._run}-{message}#x"

    async def start_process(self) -> Process:
        locks = SessionLocks(lambda: connect_session(self._url))
        self._stack.push_async_callback(locks.close)
        process = Process(PostgresInbox(self._pool, locks), locks)
        assert await locks.fetchval("select pg_try_advisory_lock($1, $2)", LIVENESS_LOCK_CLASS, process.inbox.owner)
        self.processes.append(process)
        return process

    async def kill(self, process: Process) -> None:
        """Only its lock: what it runs goes on, and comes too late if another process takes the message."""
        await process.locks.close()
        while await self._observer.fetchval(IS_LOCKED, process.inbox.owner):
            await asyncio.sleep(0.001)
        process.alive = False

    async def play(self, number: int, round_: Round) -> None:
        tasks = [asyncio.create_task(self.perform(number, operation)) for operation in round_.operations]
        if round_.lose_connections:
            await asyncio.sleep(0.001 * len(tasks))
            await self._observer.execute(TERMINATE_POOL)
        await asyncio.gather(*tasks)
        for process in self.processes:
            await settle(process)
        for operation in round_.operations:
            await self.check(operation.message)
        if round_.dies is not None and self.processes[-PROCESSES:][round_.dies].alive:
            await self.kill(self.processes[-PROCESSES:][round_.dies])
            await self.start_process()

    async def perform(self, number: int, operation: Operation) -> None:
        owner = next((process for process in self.processes if operation.message in process.running), None)
        process = self.processes[-PROCESSES:][operation.process]
        match operation.kind:
            case "finish" if owner:
                await self.finish(owner, operation.message, number)
            case "release" if owner:
                await self.release(owner, operation.message)
            case "acquire" if operation.message not in process.running:
                await self.acquire(process, operation.message)
            case "cancelled" if operation.message not in process.running:
                await self.acquire_cancelled(process, operation)

    async def acquire(self, process: Process, message: int) -> None:
        row = self.rows[message]
        acquiring = process.inbox.acquire(STEP, self.entry_id(message), "job", [f"{self._run}-{message}"])
        if row.result is None and (not process.alive or (row.owner and row.owner.alive)):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(acquiring, BLOCKED_SECONDS)
        else:
            self.note_acquired(process, message, await asyncio.wait_for(acquiring, 20))

    def note_acquired(self, process: Process, message: int, entry: InboxEntry) -> None:
        row = self.rows[message]
        if row.result is not None:
            assert entry == InboxEntry({"value": row.result}, False)
            return
        assert process.alive
        assert not (row.owner and row.owner.alive)
        self.rows[message] = Row(process, None, row.deaths + bool(row.owner))
        process.running.add(message)
        assert entry == InboxEntry(None, False, crash_count=self.rows[message].deaths)

    async def acquire_cancelled(self, process: Process, operation: Operation) -> None:
        row, entry_id = self.rows[operation.message], self.entry_id(operation.message)
        process.acquired.discard(entry_id)
        process.unanswered.discard(entry_id)
        task = asyncio.create_task(process.inbox.acquire(STEP, entry_id, "job"))
        for _ in range(operation.turns):
            await asyncio.sleep(0)
        if not task.cancel():
            self.note_acquired(process, operation.message, task.result())
            return
        await asyncio.wait({task})
        assert task.cancelled()
        await settle(process)
        is_free = process.alive and row.result is None and not (row.owner and row.owner.alive)
        assert is_free or entry_id not in process.acquired
        if entry_id in process.acquired or (is_free and entry_id in process.unanswered and not await self.stored(operation.message)):
            self.rows[operation.message] = Row()  # acquired, then released; else it was left as it was

    async def finish(self, process: Process, message: int, number: int) -> None:
        row = self.rows[message]
        process.running.discard(message)
        try:
            await asyncio.wait_for(process.inbox.mark_done(STEP, self.entry_id(message), Number(value=number), None), 20)
        except OwnershipLost:
            await process.inbox.release(STEP, self.entry_id(message))  # as the worker does
            assert row.owner is not process
            return
        assert row.owner is process
        self.rows[message] = Row(result=number, deaths=row.deaths)

    async def release(self, process: Process, message: int) -> None:
        process.running.discard(message)
        await asyncio.wait_for(process.inbox.release(STEP, self.entry_id(message)), 20)
        if self.rows[message].owner is process:
            self.rows[message] = Row()

    async def stored(self, message: int) -> Any:
        return await self._observer.fetchrow(
            "select owner, result, deaths from atelier.inbox where message_id = $1", self.entry_id(message)
        )

    async def check(self, message: int) -> None:
        row, stored = self.rows[message], await self.stored(message)
        if row == Row():
            assert stored is None, message
        else:
            assert stored is not None, message
            owner, result = row.owner and row.owner.inbox.owner, None if row.result is None else {"value": row.result}
            assert tuple(stored) == (owner, result, row.deaths), message


@RANDOM_MIX
@given(rounds=st.lists(ROUNDS, min_size=2, max_size=8))
async def test_random_mix_leaves_what_the_model_says(bus_settings: BusSettings, database_url: str, rounds: list[Round]) -> None:
    """Claims, repeats, crashes, cancelled callers and lost connections: one owner, one result, every crash counted."""
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        urls = [f"{database_url}?application_name={APPLICATION}", database_url]
        pool, observer = [await stack.enter_async_context(open_pool(with_database(bus_settings, url))) for url in urls]
        assert pool is not None
        assert observer is not None
        await apply_schemas(pool, [SCHEMA])
        mix = Mix(pool, observer, database_url, stack)
        for _ in range(PROCESSES):
            await mix.start_process()
        for number, round_ in enumerate(rounds):
            await mix.play(number, round_)
        for message in range(MESSAGES):
            await mix.check(message)
