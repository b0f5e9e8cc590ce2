"""Responses in a real database: repeated and competing writes, conversations with a gap, retention."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from asyncpg import Pool

from actors.llm.response_repository import SCHEMA, SQL, ResponseEnd, ResponseRepository, ResponseRun, numbered
from actors.llm.response_watcher import open_watcher
from bus.errors import CallerGone, PermanentError
from contracts.claim import Claim
from contracts.fault import Fault
from contracts.responses import CreateResponse, Item, ItemPart
from contracts.text import Picture

TENANT = "shop"


@pytest.fixture
async def repository(pool: Pool) -> ResponseRepository:
    await pool.execute(SCHEMA)
    return ResponseRepository(pool)


def question(text: str = "x") -> Item:
    return Item(type="message", id=f"msg_{uuid4().hex}", content=[ItemPart(type="input_text", text=text)])


async def create(repository: ResponseRepository, *, previous: str | None = None, items: list[Item] | None = None, **fields: Any) -> str:
    response_id = f"resp_{uuid4().hex}"
    request = {"model": "text", "previous_response_id": previous} | fields
    deadline = datetime.now(UTC) + timedelta(hours=1)
    command = CreateResponse.model_validate({"response_id": response_id, "request": request, "input": [], "deadline": deadline})
    for _ in range(2):  # as when the reply to the first message was lost
        await repository.create(command, items or [question()], TENANT)
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
    for name, limit in (("MAX_CHAIN", 1), ("MAX_CONVERSATION_BYTES", 100), ("MAX_ITEMS", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(f"actors.llm.response_input.{name}", limit)
            patch.setattr(f"actors.llm.response_repository.{name}", limit, raising=False)
            with pytest.raises(PermanentError) as raised:
                await repository.load_conversation(second, TENANT)
        assert raised.value.code == "conversation-too-long"
    assert len(await repository.load_conversation(second, TENANT)) == 4


async def test_references_are_refused_before_they_are_read(repository: ResponseRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bytes of what they name: a short request may name much. The same one twice is refused."""
    stored = [question("x" * 40_000) for _ in range(4)]
    for item in stored:
        await create(repository, items=[item])
    references = [Item(type="item_reference", id=item.id) for item in stored]
    assert await repository.resolve_references(references, TENANT) == stored
    with pytest.raises(PermanentError, match="Duplicate item found") as repeated:
        await repository.resolve_references(references[:1] * 2, TENANT)
    assert repeated.value.code == "item-repeated"
    monkeypatch.setattr("actors.llm.response_input.MAX_CONVERSATION_BYTES", 150_000)
    monkeypatch.setitem(SQL, "referenced_items", "select 1 / 0")
    with pytest.raises(PermanentError, match=r"referenced have 16\d{4} bytes") as raised:
        await repository.resolve_references(references, TENANT)
    assert raised.value.code == "conversation-too-long"


async def test_listed_picture_is_the_stored_one(repository: ResponseRepository) -> None:
    """Its bytes are not listed: an item that comes back as it was listed has the picture at its place."""
    picture = Picture(claim=Claim(uri="file:///a", sha256="0" * 64, media_type="image/png", size=1))
    parts = [ItemPart(type="input_text", text="what?"), ItemPart(type="input_image", picture=picture)]
    await create(repository, items=[Item(type="message", id="msg_picture", content=parts)])
    other_text = [ItemPart(type="input_text", text="and now?"), ItemPart(type="input_image", detail="low")]
    (found,) = await repository.resolve_references([Item(type="message", id="msg_picture", content=other_text)], TENANT)
    assert [(part.text, part.detail, part.picture) for part in found.content] == [("and now?", "auto", None), ("", "low", picture)]
    for tenant, place in ((TENANT, 0), ("another", 1)):
        moved = Item(type="message", id="msg_picture", content=[other_text[1 - place], other_text[place]])
        with pytest.raises(PermanentError, match="msg_picture") as raised:
            await repository.resolve_references([moved], tenant)
        assert raised.value.code == "item-unknown"


async def test_events_are_read_in_bounded_pages(repository: ResponseRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the last ones, each of which repeats the whole answer."""
    monkeypatch.setattr("actors.llm.response_repository.EVENT_BYTES", 5000)
    response_id = await create(repository)
    run = await begin(repository, response_id)
    end = ResponseEnd(run.response, "completed", None, [])
    events = numbered([*({"type": "a", "text": "x" * size} for size in (10, 4000, 4000, 9000, 10)), end.event()], 1)
    await repository.finish(run, 1, events, end, [])
    read: list[Any] = []
    while not read or not read[-1].ended:
        after = read[-1].events[-1]["sequence_number"] if read else -1
        read.append(await repository.events_after(response_id, TENANT, after, unstored=True))
    assert [event["sequence_number"] for page in read for event in page.events] == list(range(7))
    assert max(len(str(page.events)) for page in read) < 5000 + 9500


async def test_expired_response_has_the_cause_of_its_last_run(repository: ResponseRepository) -> None:
    response_id = await create(repository)
    first, second = await begin(repository, response_id), await begin(repository, response_id)
    await repository.note_fault(first, Fault(code="loading", message="an earlier run", step="response.run"))
    await repository.note_fault(second, Fault(code="server-away", message="the server is away", step="response.run"))
    assert (await repository.get(response_id, TENANT)).fault is None
    await repository.pool.execute("update atelier.responses set deadline = now() where response_id = $1", response_id)
    found = await repository.get(response_id, TENANT)
    assert found.fault is not None
    assert (found.status, found.fault.code) == ("failed", "server-away")
    assert found.response["error"]["message"].endswith("before its deadline: the last attempt failed: the server is away")


async def test_failed_query_does_not_end_the_watch(repository: ResponseRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises: whoever waits is woken by a later one."""
    async with open_watcher(repository.pool) as watcher:
        with monkeypatch.context() as patch:
            patch.setitem(SQL, "sequences", "select no_such_column from atelier.responses where response_id = any($1)")
            waiting = asyncio.create_task(watcher.wait("deleted", 1, 60))
            await asyncio.sleep(0.3)
            assert not waiting.done()
        async with asyncio.timeout(5):
            await waiting


async def test_every_query_uses_an_index(repository: ResponseRepository) -> None:
    """However many responses there are, no query reads them all."""
    async with repository.pool.acquire() as connection, connection.transaction():
        await connection.execute("set local enable_seqscan = off; set local plan_cache_mode = force_generic_plan")
        plans = {name: await explain(connection, query) for name, query in SQL.items() if name != "schema"}
    assert len(plans) > 20
    assert {name: plan for name, plan in plans.items() if "Seq Scan on response" in plan} == {}
    assert len(re.findall(r"Index (?:Only )?Scan", plans["purge"])) == plans["purge"].count("Index Cond"), "an index is read as a whole"
    assert all(name in plans["purge"] for name in ("responses_ended_at", "responses_unstored"))


async def explain(connection: Any, query: str) -> str:
    """The plan for any arguments."""
    await connection.execute(f"prepare explained as {query}")
    count = await connection.fetchval("select cardinality(parameter_types) from pg_prepared_statements where name = 'explained'")
    arguments = f"({', '.join(['null'] * count)})" if count else ""
    rows = await connection.fetch(f"explain execute explained{arguments}")
    await connection.execute("deallocate explained")
    return "\n".join(row[0] for row in rows)


async def test_old_responses_are_purged(repository: ResponseRepository) -> None:
    """Stored ones after their retention, the others soon; with their items and events. What runs is kept."""
    old, young, unstored, running, lost = [await create(repository, store=index != 2) for index in range(5)]
    for response_id in (old, young, unstored):
        await complete(repository, response_id)
    await repository.pool.execute("update atelier.responses set ended_at = now() - interval '10 days' where response_id = $1", old)
    await repository.pool.execute("update atelier.responses set ended_at = now() - interval '10 minutes' where response_id = $1", unstored)
    await repository.pool.execute("update atelier.responses set deadline = now() - interval '10 days' where response_id = $1", lost)
    await repository.purge(None)
    assert await left(repository, old, young, unstored, running, lost) == [old, young, running, lost]
    await repository.purge(9.5)
    assert await left(repository, old, young, unstored, running, lost) == [young, running]
    for table in ("response_items", "response_events"):
        assert await repository.pool.fetchval(f"select count(*) from atelier.{table} where response_id = any($1)", [old, unstored]) == 0


async def left(repository: ResponseRepository, *ids: str) -> list[str]:
    rows = await repository.pool.fetch("select response_id from atelier.responses where response_id = any($1)", list(ids))
    found = {row["response_id"] for row in rows}
    return [response_id for response_id in ids if response_id in found]
