"""Responses in Postgres: each with its items, and its events as they are sent.

Events get their numbers where they are written, under the lock of the response's row: without gaps, and none twice. Of several runs of one
response only the latest writes; what has ended is not changed any more.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asyncpg import Connection, Pool, Record

from actors.llm.response_input import (
    MAX_CHAIN,
    check_chain,
    check_ids,
    check_item_count,
    check_size,
    needs_stored_item,
    with_stored_item,
)
from actors.llm.response_output import Event, OutputStream
from bus.errors import CallerGone, PermanentError
from bus.persistence.pool import snapshot
from bus.retry import retry_while_unavailable
from bus.sql import load_queries
from contracts.fault import Fault
from contracts.responses import (
    CreateResponse,
    InputItems,
    Item,
    ListInputItems,
    ResponseRequest,
    ResponseStatus,
    StoredResponse,
    response_unknown,
)

SQL = load_queries(__file__, "response_repository.sql")
SCHEMA = SQL["schema"]
DATABASE_MISSING = "responses are kept in Postgres: set DATABASE_URL at the worker of the step text"
UNSTORED_SECONDS = 300.0
"""After its end, a response that is not to be stored waits so long for the gateway that reads and deletes it."""
PURGE_BATCH_SIZE = 1000
EVENT_GROUPS = 64
"""Rows of events that one query reads."""
EVENT_BYTES = 256 << 10
"""Of events in one row, unless one event alone has more; a reply has at most as much and one row."""
INVALID_PROMPT_CODES = frozenset({"prompt-too-long", "invalid-message", "schema-refused", "parameter-unsupported", "prompt-unreadable"})


@dataclass(frozen=True)
class ResponseRun:
    """A run that has begun. `events`: those that earlier runs stored; `number`: of this run, from 1; `is_new`: no run was before it."""

    response_id: str
    tenant: str
    run: str
    request: ResponseRequest
    lora_adapter: str | None
    response: dict[str, Any]
    next_sequence: int
    number: int
    is_new: bool
    events: list[Event]


@dataclass(frozen=True)
class EventPage:
    """`next_sequence`: that of the response. `ended`: nothing comes after these events."""

    events: list[Event]
    ended: bool


@dataclass(frozen=True)
class ResponseRepository:
    """Every method raises PermanentError("response-unknown") for an id that the tenant does not have, unless it says otherwise."""

    pool: Pool

    async def create(self, command: CreateResponse, items: list[Item], tenant: str) -> StoredResponse:
        """Store a response with its first events. One with the same id stays as it is."""
        request = command.request
        status: ResponseStatus = "queued" if request.background else "in_progress"
        response = new_response(command, status)
        events = numbered([{"type": "response.created", "response": response}], 0)
        events += numbered([{"type": "response.queued", "response": response}], 1) if request.background else []

        fields = (request.store, request.background, request.previous_response_id, request.model_dump(mode="json"))
        row = (command.response_id, tenant, status, *fields, command.lora_adapter, response, command.deadline)
        async with self.pool.acquire() as connection, connection.transaction():
            if await connection.fetchval(SQL["create"], *row):
                await insert_items(connection, command.response_id, items, is_output=False)
                await insert_events(connection, command.response_id, events)
                await connection.execute(SQL["set_next_sequence"], command.response_id, len(events))
        return await self.get(command.response_id, tenant)

    async def resolve_references(self, items: Sequence[Item], tenant: str) -> list[Item]:
        """The items with stored ones in place of references, and with the pictures that were stored before.

        Raises PermanentError("item-unknown" · "item-repeated" · "conversation-too-long").
        """
        check_ids(items)
        ids = [item.id for item in items if needs_stored_item(item)]
        if not ids:
            return list(items)
        check_size(await self.pool.fetchval(SQL["referenced_size"], ids, tenant), "the items that are referenced have")
        rows = await self.pool.fetch(SQL["referenced_items"], ids, tenant)
        stored = {row["item_id"]: Item.model_validate(row["item"]) for row in rows}
        return [with_stored_item(item, stored) if needs_stored_item(item) else item for item in items]

    async def load_conversation(self, previous_id: str | None, tenant: str) -> list[Item]:
        """The items of a response and of those before it, in order.

        Raises PermanentError("previous-response-unknown" · "previous-response-unfinished" · "conversation-too-long").
        """
        if previous_id is None:
            return []
        async with snapshot(self.pool) as connection:  # a response that is deleted meanwhile is not left out of the conversation
            chain = await connection.fetch(SQL["chain"], previous_id, tenant, MAX_CHAIN)
            check_chain(previous_id, chain)
            ids = [row["response_id"] for row in reversed(chain)]
            size = await connection.fetchrow(SQL["chain_size"], ids)
            check_size(size["bytes"], "the responses before this one have")
            check_item_count(size["items"])
            return [Item.model_validate(row["item"]) for row in await connection.fetch(SQL["chain_items"], ids)]

    async def load_items(self, run: ResponseRun) -> list[Item]:
        """Of the conversation and the response's own input. Raises as `load_conversation`."""
        before = await self.load_conversation(run.request.previous_response_id, run.tenant)
        return before + [Item.model_validate(row["item"]) for row in await self.pool.fetch(SQL["chain_items"], [run.response_id])]

    async def begin(self, response_id: str, tenant: str, run: str) -> ResponseRun | None:
        """Begin a run, after which earlier ones cannot write. None when the response has ended, or was deleted."""
        row = await retry_while_unavailable(lambda: self.pool.fetchrow(SQL["begin"], response_id, tenant, run), "database")
        if row is None:
            return None
        groups = await retry_while_unavailable(lambda: self.pool.fetch(SQL["all_events"], response_id), "database")
        events = [event for group in groups for event in group["events"]]
        return ResponseRun(
            response_id,
            tenant,
            run,
            ResponseRequest.model_validate(row["request"]),
            row["lora_adapter"],
            row["response"],
            row["next_sequence"],
            row["runs"],
            all(event["type"] != "response.in_progress" for event in events),
            events,
        )

    async def append(self, run: ResponseRun, first: int, events: list[Event]) -> None:
        """Store numbered events, the first of which has the number `first`. It may be repeated: they are stored once.

        Raises CallerGone when the response has ended meanwhile, was deleted, or another run has begun.
        """
        async with self.pool.acquire() as connection, connection.transaction():
            if await lock_run(connection, run) == first:
                await insert_events(connection, run.response_id, events)
                await connection.execute(SQL["set_next_sequence"], run.response_id, first + len(events))

    async def finish(self, run: ResponseRun, first: int, events: list[Event], end: "ResponseEnd", items: list[Item]) -> None:
        """Store the last events, the response as it has ended, and its output. Repeatable, and raises as `append`."""
        async with self.pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(SQL["state"], run.response_id, run.tenant)
            if row and row["status"] == end.status and row["next_sequence"] == first + len(events):
                return
            await lock_run(connection, run)
            await insert_items(connection, run.response_id, items, is_output=True)
            await store_end(connection, run.response_id, first, events, end)

    async def note_fault(self, run: ResponseRun, fault: Fault) -> None:
        """Why a run ended that is followed by another one: the cause, if the other does not come to an end before the deadline."""
        await self.pool.execute(SQL["note_fault"], run.response_id, run.run, fault.model_dump(mode="json", exclude_none=True))

    async def end(self, response_id: str, tenant: str, status: ResponseStatus, fault: Fault | None = None, run: str | None = None) -> None:
        """End a response with the output that it has; one that has ended stays as it is.

        `run`: the caller's. Raises CallerGone when another one has begun.
        """
        async with self.pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(SQL["lock"], response_id, tenant)
            if row is None:
                raise unknown(response_id)
            if row["status"] not in ("queued", "in_progress"):
                return
            if run is not None and row["run"] != run:
                raise superseded()
            groups = await connection.fetch(SQL["all_events"], response_id)
            output = OutputStream(response_id, [event for group in groups for event in group["events"]])
            items, first = output.items("incomplete"), row["next_sequence"]
            end = ResponseEnd(row["response"], status, fault, items)
            await insert_items(connection, response_id, items, is_output=True)
            await store_end(connection, response_id, first, numbered([end.event()], first), end)

    async def get(self, response_id: str, tenant: str, *, unstored: bool = True) -> StoredResponse:
        await self._state(response_id, tenant, unstored)
        row = await self.pool.fetchrow(SQL["get"], response_id, tenant)
        if row is None:
            raise unknown(response_id)
        fault = Fault.model_validate(row["fault"]) if row["fault"] and row["status"] == "failed" else None
        return StoredResponse(response=row["response"], status=row["status"], fault=fault)

    async def require_background(self, response_id: str, tenant: str) -> None:
        """Raises PermanentError("response-not-background")."""
        row = await self._state(response_id, tenant, unstored=False)
        if not row["background"]:
            message = "Cannot cancel a synchronous response: close its connection. Only those with background=true are cancelled here."
            raise PermanentError("response-not-background", message)

    async def _state(self, response_id: str, tenant: str, unstored: bool) -> Record:
        """Without the response itself. One whose deadline has passed is ended as failed before."""
        row = await self.pool.fetchrow(SQL["state"], response_id, tenant)
        if row is None or not (row["stored"] or unstored):
            raise unknown(response_id)
        if row["expired"]:
            await self._expire(response_id, tenant, row["fault"])
            row = await self.pool.fetchrow(SQL["state"], response_id, tenant)
        return row

    async def _expire(self, response_id: str, tenant: str, noted: dict[str, Any] | None) -> None:
        """`noted`: the fault of a run that had failed before."""
        cause = f"the last attempt failed: {noted['message']}" if noted else "its worker was stopped or is too busy. Create it again."
        code = noted["code"] if noted else "deadline-exceeded"
        fault = Fault(code=code, message=f"The response was not generated before its deadline: {cause}"[:2000], step="response.run")
        await self.end(response_id, tenant, "failed", fault)

    async def events_after(self, response_id: str, tenant: str, after: int, *, unstored: bool) -> EventPage:
        await self._state(response_id, tenant, unstored)
        rows = await self.pool.fetch(SQL["events_after"], response_id, after, EVENT_GROUPS)
        events: list[Event] = []
        size = 0
        for row in rows:
            if events and size > EVENT_BYTES:
                break
            events += [event for event in row["events"] if event["sequence_number"] > after]
            size += sum(map(event_size, row["events"]))
        last = events[-1]["sequence_number"] if events else after
        row = await self._state(response_id, tenant, unstored)
        has_ended = row["status"] not in ("queued", "in_progress")
        return EventPage(events, has_ended and last + 1 >= row["next_sequence"])

    async def list_input(self, command: ListInputItems, tenant: str) -> InputItems:
        """Raises PermanentError("item-unknown") for `after`."""
        await self._state(command.response_id, tenant, unstored=False)
        number = None
        if command.after is not None:
            number = await self.pool.fetchval(SQL["number_of_item"], command.response_id, command.after)
            if number is None:
                raise PermanentError("item-unknown", f"after: Item with id {command.after[:80]!r} not found in the input.")
        rows = await self.pool.fetch(SQL["input_items"], command.response_id, command.order == "desc", number, command.limit + 1)
        items = [Item.model_validate(row["item"]).to_openai() for row in rows[: command.limit]]
        return InputItems(items=items, has_more=len(rows) > command.limit)

    async def delete(self, response_id: str, tenant: str) -> None:
        if await self.pool.fetchval(SQL["delete"], response_id, tenant) is None:
            raise unknown(response_id)

    async def purge(self, days: float | None) -> int:
        """Delete what ended more than `days` ago (None: never), and soon what is not to be stored; returns how many responses."""
        total = 0
        while count := await self.pool.fetchval(SQL["purge"], days, UNSTORED_SECONDS, PURGE_BATCH_SIZE):
            total += count
        return total


@dataclass(frozen=True)
class ResponseEnd:
    """How a response ends. `before`: the response as it was stored. `incomplete_reason` and `usage`: in OpenAI's form.

    `left_out`: parameters of the request that the model's server does not take.
    """

    before: dict[str, Any]
    status: ResponseStatus
    fault: Fault | None
    items: list[Item]
    incomplete_reason: str | None = None
    usage: dict[str, Any] | None = None
    model: str | None = None
    left_out: list[str] | None = None

    @property
    def response(self) -> dict[str, Any]:
        return self.before | {
            "status": self.status,
            "completed_at": int(time.time()) if self.status == "completed" else None,
            "error": to_error(self.fault) if self.fault else None,
            "incomplete_details": {"reason": self.incomplete_reason} if self.incomplete_reason else None,
            "output": [item.to_openai() for item in self.items],
            "usage": self.usage,
            "model": self.model or self.before["model"],
            **({"left_out": self.left_out} if self.left_out else {}),
        }

    def event(self) -> Event:
        return {"type": f"response.{self.status}", "response": self.response}


def to_error(fault: Fault) -> dict[str, str]:
    """With OpenAI's codes."""
    if fault.code.startswith(("image-", "asset-", "claim-")):
        return {"code": "invalid_image", "message": fault.message}
    return {"code": "invalid_prompt" if fault.code in INVALID_PROMPT_CODES else "server_error", "message": fault.message}


def new_response(command: CreateResponse, status: ResponseStatus) -> dict[str, Any]:
    """In OpenAI's form."""
    fields = {"id": command.response_id, "object": "response", "created_at": int(time.time()), "status": status}
    empty: dict[str, Any] = {"completed_at": None, "error": None, "incomplete_details": None, "output": [], "usage": None}
    return fields | empty | command.request.to_openai()


def numbered(events: list[Event], first: int) -> list[Event]:
    return [{"type": event["type"], "sequence_number": first + index} | event for index, event in enumerate(events)]


def event_size(event: Event) -> int:
    """About how many bytes it has: those of the whole response, or of the texts of another event."""
    return len(str(event))


async def lock_run(connection: Connection, run: ResponseRun) -> int:
    """The next sequence number. Raises CallerGone unless the run may write."""
    number = await connection.fetchval(SQL["lock_run"], run.response_id, run.run)
    if number is None:
        raise superseded()
    return int(number)


def superseded() -> CallerGone:
    return CallerGone("the response was cancelled or deleted, or another run of it has begun")


async def insert_items(connection: Connection, response_id: str, items: list[Item], *, is_output: bool) -> None:
    first = await connection.fetchval(SQL["next_number"], response_id)
    rows = [
        (response_id, first + index, item.id, is_output, item.model_dump(mode="json", exclude_none=True))
        for index, item in enumerate(items)
    ]
    await connection.executemany(SQL["insert_item"], rows)


async def insert_events(connection: Connection, response_id: str, events: list[Event]) -> None:
    """In rows of EVENT_BYTES: the last events of an answer repeat all its text and log probabilities."""
    rows = [(group[0]["sequence_number"], group[-1]["sequence_number"], group) for group in split_by_size(events)]
    await connection.executemany(SQL["insert_events"], [(response_id, *row) for row in rows])


def split_by_size(events: list[Event]) -> list[list[Event]]:
    groups: list[list[Event]] = []
    size = 0
    for event in events:
        size += event_size(event)
        if not groups or size > EVENT_BYTES:
            groups.append([])
            size = event_size(event)
        groups[-1].append(event)
    return groups


async def store_end(connection: Connection, response_id: str, first: int, events: list[Event], end: ResponseEnd) -> None:
    await insert_events(connection, response_id, events)
    fault = end.fault.model_dump(mode="json", exclude_none=True) if end.fault else None
    await connection.execute(SQL["end"], response_id, end.status, end.response, fault, first + len(events))


def unknown(response_id: str) -> PermanentError:
    return PermanentError("response-unknown", response_unknown(response_id))
