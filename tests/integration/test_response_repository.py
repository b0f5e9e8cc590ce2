"""Responses in a real database: repeated and competing writes, conversations with a gap, retention."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from asyncpg import Pool

from actors.llm.response_repository import SCHEMA, ResponseEnd, ResponseRepository, ResponseRun, numbered
from bus.errors import CallerGone, PermanentError
from contracts.responses import CreateResponse, Item, ItemPart

TENANT = "shop"


@pytest.fixture
async def repository(pool: Pool) -> ResponseRepository:
    await pool.execute(SCHEMA)
    return ResponseRepository(pool)


def question(text: str = "x") -> Item:
    return Item(type="message", id=f"msg_{uuid4().hex}", content=[ItemPart(type="input_text", text=text)])


async def create(repository: ResponseRepository, *, previous: str | None = None, **fields: Any) -> str:
    response_id = f"resp_{uuid4().hex}"
    request = {"model": "text", "previous_response_id": previous} | fields
    deadline = datetime.now(UTC) + timedelta(hours=1)
    command = CreateResponse.model_validate({"response_id": response_id, "request": request, "input": [], "deadline": deadline})
    for _ in range(2):  # as when the reply to the first message was lost
        await repository.create(command, [question()], TENANT)
    return response_id


async def begin(repository: ResponseRepository, response_id: str) -> ResponseRun:
    run = await repository.begin(response_id, TENANT, uuid4().hex)
    assert run is not None
    return run


async def complete(repository: ResponseRepository, response_id: str) -> None:
    run = await begin(repository, response_id)
    answer = Item(type="message", id=f"msg_{uuid4().hex}", role="assistant", content=[ItemPart(type="output_text", text="y")])
    end = ResponseEnd(run.response, "completed", None, [answer])
    events = numbered([end.event()], run.next_sequence)
    for _ in range(2):  # as when the confirmation of the commit was lost
        await repository.finish(run, run.next_sequence, events, end, [answer])


async def numbers(repository: ResponseRepository, response_id: str) -> list[int]:
    page = await repository.events_after(response_id, TENANT, -1, unstored=True)
    return [event["sequence_number"] for event in page.events]


async def test_repeated_write_is_stored_once(repository: ResponseRepository) -> None:
    response_id = await create(repository)
    run = await begin(repository, response_id)
    events = numbered([{"type": "a"}, {"type": "b"}], run.next_sequence)
    for _ in range(2):
        await repository.append(run, run.next_sequence, events)
    assert await numbers(repository, response_id) == [0, 1, 2]
    assert [event["type"] for event in (await repository.events_after(response_id, TENANT, 1, unstored=True)).events] == ["b"]


async def test_only_the_latest_run_writes(repository: ResponseRepository) -> None:
    response_id = await create(repository)
    first, second = await begin(repository, response_id), await begin(repository, response_id)
    assert (first.number, second.number) == (1, 2)
    events = numbered([{"type": "a"}], 1)
    with pytest.raises(CallerGone):
        await repository.append(first, 1, events)
    with pytest.raises(CallerGone):
        await repository.end(response_id, TENANT, "failed", run=first.run)
    await repository.append(second, 1, events)
    assert await numbers(repository, response_id) == [0, 1]


async def test_ended_response_is_not_changed(repository: ResponseRepository) -> None:
    response_id = await create(repository)
    run = await begin(repository, response_id)
    for status in ("cancelled", "failed"):
        await repository.end(response_id, TENANT, status)
    with pytest.raises(CallerGone):
        await repository.append(run, run.next_sequence, numbered([{"type": "a"}], run.next_sequence))
    assert (await repository.get(response_id, TENANT)).status == "cancelled"
    assert await repository.begin(response_id, TENANT, "another") is None
    assert await numbers(repository, response_id) == [0, 1]


async def test_conversation_is_whole_or_refused(repository: ResponseRepository) -> None:
    """Items come in the order of the conversation. With a deleted response in its middle it is refused, not shortened."""
    chain: list[str] = []
    for _ in range(3):
        chain.append(await create(repository, previous=chain[-1] if chain else None))
        await complete(repository, chain[-1])
    items = await repository.load_conversation(chain[-1], TENANT)
    assert [item.role for item in items] == ["user", "assistant"] * 3
    with pytest.raises(PermanentError, match="not found"):
        await repository.load_conversation(chain[-1], "another")
    await repository.delete(chain[1], TENANT)
    with pytest.raises(PermanentError, match=f"{chain[1]}.*was deleted"):
        await repository.load_conversation(chain[-1], TENANT)


async def test_long_conversation_is_refused(repository: ResponseRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await create(repository)
    await complete(repository, first)
    second = await create(repository, previous=first)
    await complete(repository, second)
    for name, limit in (("MAX_CHAIN", 1), ("MAX_CHAIN_BYTES", 100), ("MAX_ITEMS", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(f"actors.llm.response_repository.{name}", limit)
            with pytest.raises(PermanentError) as raised:
                await repository.load_conversation(second, TENANT)
        assert raised.value.code == "conversation-too-long"
    assert len(await repository.load_conversation(second, TENANT)) == 4


async def test_old_responses_are_purged(repository: ResponseRepository) -> None:
    """Stored ones after their retention, the others soon; with their items and events. What runs is kept."""
    old, young, unstored, running = [await create(repository, store=index != 2) for index in range(4)]
    for response_id in (old, young, unstored):
        await complete(repository, response_id)
    await repository.pool.execute("update atelier.responses set ended_at = now() - interval '10 days' where response_id = $1", old)
    await repository.pool.execute("update atelier.responses set ended_at = now() - interval '10 minutes' where response_id = $1", unstored)
    await repository.purge(None)
    assert await left(repository, old, young, unstored, running) == [old, young, running]
    await repository.purge(9)
    assert await left(repository, old, young, unstored, running) == [young, running]
    for table in ("response_items", "response_events"):
        assert await repository.pool.fetchval(f"select count(*) from atelier.{table} where response_id = any($1)", [old, unstored]) == 0


async def left(repository: ResponseRepository, *ids: str) -> list[str]:
    rows = await repository.pool.fetch("select response_id from atelier.responses where response_id = any($1)", list(ids))
    found = {row["response_id"] for row in rows}
    return [response_id for response_id in ids if response_id in found]
