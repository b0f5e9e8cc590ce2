"""Responses: generates, stores and streams answers in the form of OpenAI's Responses API, which the gateway serves.

`response.create` stores a request, `response.run` generates it and writes its events; the other steps read, cancel and delete. Whoever
waits for a response reads its events by their numbers, in any process, so that a stream can be continued anywhere.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import uuid4

import structlog

from actors.attachments.documents import DocumentReader
from actors.engines.language.requests import PromptTooLong
from actors.engines.shared_resource import open_shared
from actors.llm.prompt_builder import PromptBuilder
from actors.llm.request_checks import check_messages, check_tools
from actors.llm.response_input import check_conversation
from actors.llm.response_prompt import check_calls, drop_oldest, to_command, to_messages
from actors.llm.response_repository import DATABASE_MISSING, SCHEMA, ResponseEnd, ResponseRepository, ResponseRun
from actors.llm.response_watcher import ResponseWatcher, open_watcher
from actors.llm.response_writer import EventWriter
from actors.llm.settings import TextSettings
from actors.llm.text_answer import TextDependencies, answer_text
from actors.llm.text_engines import open_text_engine
from actors.settings import AttachmentSettings, ResponseSettings
from bus.actor import Actor, Context, Handler, OpenHandler, Resources, query_actor
from bus.errors import CallerGone, PermanentError, TemporaryError
from bus.outcome import fault_from_error
from bus.persistence.purge import purge_periodically
from bus.retry import UNAVAILABLE, retry_while_unavailable
from contracts.responses import (
    CancelResponse,
    CreateResponse,
    DeleteResponse,
    GetResponse,
    GetResponseEvents,
    InputItems,
    ItemStatus,
    ListInputItems,
    ResponseDeleted,
    ResponseEvents,
    ResponseRan,
    ResponseRequest,
    ResponseStatus,
    RunResponse,
    StoredResponse,
)
from contracts.text import FinishReason, TextDone
from contracts.wire import Result

RUN_STEP = "response.run"
RUN_SECONDS = 600.0
"""Of one run; a longer one fails."""
MAX_RUNS = 3
"""Runs of one response, with those whose process died; fewer than the deliveries after which the bus gives a message up."""
PURGE_SECONDS = 60.0
DATABASE_PATIENCE_SECONDS, DATABASE_PAUSE_SECONDS = 2.0, 0.3
"""So long a query is repeated while the database is away, unless its caller waits for longer; and the pause before each time."""
INCOMPLETE_REASONS: dict[FinishReason, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
UNREQUESTED_PARAMETERS = frozenset({"seed", "repetition_penalty"})
"""Of the server's request, but never of the client's: nothing is missing when a server does not take them."""


log = structlog.get_logger()


@dataclass(frozen=True)
class Store:
    """The stored responses, and the waits for their events."""

    repository: ResponseRepository
    watcher: ResponseWatcher


@dataclass(frozen=True)
class Dependencies:
    """What a run needs. `store`: None without a database."""

    text: TextDependencies
    store: Store | None


@asynccontextmanager
async def open_store(resources: Resources) -> AsyncIterator[Store | None]:
    """Shared by the actors of a worker; None without a database, so that the other steps of the process are served."""
    pool = resources.database
    if pool is None:
        yield None
        return
    async with open_shared(resources.shared, "response-watcher", lambda _: open_watcher(pool)) as watcher:
        yield Store(ResponseRepository(pool), watcher)


@asynccontextmanager
async def open_run(resources: Resources) -> AsyncIterator[Handler]:
    settings, attachments, days = TextSettings(), AttachmentSettings(), ResponseSettings().retention_days
    async with open_store(resources) as store, open_text_engine(settings, resources.shared, resources.set_unready) as engine:
        prompt_builder = PromptBuilder(resources.claims, DocumentReader(attachments), attachments)
        handler = partial(run_response, dependencies=Dependencies(TextDependencies(engine, prompt_builder, settings), store))
        if store is None:
            yield handler
            return
        async with purge_periodically("responses", partial(store.repository.purge, days or None), PURGE_SECONDS):
            yield handler


def with_store(handler: Callable[..., Coroutine[Any, Any, Result]]) -> OpenHandler:
    """Opens `handler` with the store as its keyword argument. Each call may be repeated: it is, while the database is away.

    Its faults: `database-missing` without a database, `database-away` when it is away for longer than the caller waits.
    """

    @asynccontextmanager
    async def open_handler(resources: Resources) -> AsyncIterator[Handler]:
        async with open_store(resources) as store:

            async def handle(command: Any, context: Context) -> Result:
                return await answer_while_away(partial(handler, context=context, store=require_store(store)), command)

            yield handle

    return open_handler


async def answer_while_away(handler: Callable[[Any], Coroutine[Any, Any, Result]], command: Any) -> Result:
    """Raises TemporaryError("database-away")."""
    loop = asyncio.get_running_loop()
    until = loop.time() + max(DATABASE_PATIENCE_SECONDS, getattr(command, "wait_seconds", 0.0))
    while True:
        try:
            return await handler(command)
        except UNAVAILABLE as error:
            log.warning("dependency.unavailable", dependency="database", error=repr(error))
            if (left := until - loop.time() - DATABASE_PAUSE_SECONDS) <= 0:
                raise TemporaryError("the database is away: send the request again", code="database-away") from error
        await asyncio.sleep(DATABASE_PAUSE_SECONDS)
        if "wait_seconds" in type(command).model_fields:
            command = command.model_copy(update={"wait_seconds": min(left, command.wait_seconds)})


def require_store(store: Store | None) -> Store:
    if store is None:
        raise PermanentError("database-missing", DATABASE_MISSING)
    return store


async def create_response(command: CreateResponse, context: Context, *, store: Store) -> StoredResponse:
    """What cannot be run is refused here, before anything is stored."""
    tenant, repository = context.tenant or "", store.repository
    items = await repository.resolve_references(command.input, tenant)
    conversation = [*await repository.load_conversation(command.request.previous_response_id, tenant), *items]
    check_conversation(conversation)
    check_calls(conversation)
    text = to_command(command.response_id, command.request, to_messages(conversation), command.lora_adapter)
    check_tools(text)
    check_messages(text.messages or ())
    return await repository.create(command, items, tenant)


async def run_response(command: RunResponse, context: Context, *, dependencies: Dependencies) -> ResponseRan:
    """Ends the response in every case, except when it certainly runs again: then the error is raised, and noted with the response."""
    store = require_store(dependencies.store)
    repository, tenant = store.repository, context.tenant or ""
    run = await repository.begin(command.response_id, tenant, uuid4().hex)
    if run is None:
        return ResponseRan(response_id=command.response_id, status=await find_status(repository, command.response_id, tenant))
    try:
        return await generate(run, context, dependencies.text, store)
    except CallerGone:
        raise
    except Exception as error:
        fault = fault_from_error(error, getattr(error, "code", "attempts-exhausted"), RUN_STEP, run.number)
        if run.number < MAX_RUNS and context.runs_again(error):
            await retry_while_unavailable(lambda: repository.note_fault(run, fault), "database")
            raise
        await retry_while_unavailable(lambda: repository.end(run.response_id, tenant, "failed", fault, run.run), "database")
        store.watcher.wake(run.response_id)
        return ResponseRan(response_id=run.response_id, status="failed")


async def find_status(repository: ResponseRepository, response_id: str, tenant: str) -> ResponseStatus | None:
    try:
        return (await repository.get(response_id, tenant)).status
    except PermanentError:
        return None


async def generate(run: ResponseRun, context: Context, text: TextDependencies, store: Store) -> ResponseRan:
    if run.number > MAX_RUNS:
        raise PermanentError("attempts-exhausted", f"the response was begun {MAX_RUNS} times, and its process ended each time")
    writer = EventWriter(store.repository, run, store.watcher.wake)
    try:
        async with asyncio.timeout(RUN_SECONDS) as limit, writer.write_groups():
            done = await answer(run, replace(context, send_delta=writer.send), text, store.repository)
    except TimeoutError:
        if not limit.expired():
            raise
        raise PermanentError("timeout", f"the response was not generated within {RUN_SECONDS:g} s") from None
    reason = INCOMPLETE_REASONS.get(done.finish_reason)
    item_status: ItemStatus = "incomplete" if reason else "completed"
    events = writer.output.take_events(item_status)
    end = ResponseEnd(
        run.response,
        "incomplete" if reason else "completed",
        None,
        writer.output.items(item_status),
        incomplete_reason=reason,
        usage=to_usage(done),
        model=run.lora_adapter or done.model_info.model_name,
        left_out=[name for name in done.model_info.left_out or () if was_requested(name, run.request)] or None,
    )
    await writer.finish(events, end)
    usage = {"prompt_tokens": done.usage.prompt_tokens, "completion_tokens": done.usage.completion_tokens}
    return ResponseRan(response_id=run.response_id, status=end.status, device_seconds=done.device_seconds, **usage)


async def answer(run: ResponseRun, context: Context, text: TextDependencies, repository: ResponseRepository) -> TextDone:
    """With `truncation: auto` without the oldest turns, as many as are too long. Raises as `answer_text`."""
    messages = to_messages(await retry_while_unavailable(lambda: repository.load_items(run), "database"))
    at_least = 1
    while True:
        try:
            return await answer_text(to_command(run.response_id, run.request, messages, run.lora_adapter), context, text)
        except PromptTooLong as error:
            if run.request.truncation == "disabled":
                raise
            messages = drop_oldest(messages, error, at_least)
            at_least *= 2


def was_requested(name: str, request: ResponseRequest) -> bool:
    """Whether the client may miss a parameter that the server did not take: one that has OpenAI's default changes nothing."""
    field = ResponseRequest.model_fields.get(name)
    return name not in UNREQUESTED_PARAMETERS and (field is None or getattr(request, name) != field.default)


def to_usage(done: TextDone) -> dict[str, Any]:
    """In OpenAI's form."""
    usage = done.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


async def get_response(command: GetResponse, context: Context, *, store: Store) -> StoredResponse:
    tenant, until = context.tenant or "", asyncio.get_running_loop().time() + command.wait_seconds
    while True:
        found = await store.repository.get(command.response_id, tenant, unstored=command.unstored)
        left = until - asyncio.get_running_loop().time()
        if left <= 0 or found.status not in ("queued", "in_progress"):
            return found
        await store.watcher.wait(command.response_id, 2**31, left)


async def get_events(command: GetResponseEvents, context: Context, *, store: Store) -> ResponseEvents:
    tenant, until = context.tenant or "", asyncio.get_running_loop().time() + command.wait_seconds
    while True:
        page = await store.repository.events_after(command.response_id, tenant, command.after, unstored=command.unstored)
        left = until - asyncio.get_running_loop().time()
        if page.events or page.ended or left <= 0:
            return ResponseEvents(events=page.events, ended=page.ended)
        await store.watcher.wait(command.response_id, command.after + 1, left)


async def cancel_response(command: CancelResponse, context: Context, *, store: Store) -> StoredResponse:
    """The gateway cancels the job as well, so that its worker stops; the run could not write any more."""
    tenant = context.tenant or ""
    if not command.foreground:
        await store.repository.require_background(command.response_id, tenant)
    await store.repository.end(command.response_id, tenant, "cancelled")
    store.watcher.wake(command.response_id)
    return await store.repository.get(command.response_id, tenant)


async def delete_response(command: DeleteResponse, context: Context, *, store: Store) -> ResponseDeleted:
    await store.repository.delete(command.response_id, context.tenant or "")
    store.watcher.wake(command.response_id)
    return ResponseDeleted(response_id=command.response_id)


async def list_input_items(command: ListInputItems, context: Context, *, store: Store) -> InputItems:
    return await store.repository.list_input(command, context.tenant or "")


response_query = partial(query_actor, timeout_seconds=30, prefetch=64, schema=SCHEMA)
waiting_query = partial(query_actor, timeout_seconds=30, prefetch=1000, schema=SCHEMA)
"""One that waits holds its place meanwhile."""

ACTORS = (
    Actor(
        step=RUN_STEP,
        command=RunResponse,
        result=ResponseRan,
        open=open_run,
        timeout_seconds=RUN_SECONDS + 60,
        prefetch=32,
        schema=SCHEMA,
        description="Generates a stored response, and writes its events.",
    ),
    response_query(
        "response.create", CreateResponse, StoredResponse, with_store(create_response), "Stores a response that is to be generated."
    ),
    waiting_query("response.get", GetResponse, StoredResponse, with_store(get_response), "Returns a response, or waits for its end."),
    waiting_query(
        "response.events", GetResponseEvents, ResponseEvents, with_store(get_events), "Returns the events of a response after a number."
    ),
    response_query("response.cancel", CancelResponse, StoredResponse, with_store(cancel_response), "Ends a response as cancelled."),
    response_query("response.delete", DeleteResponse, ResponseDeleted, with_store(delete_response), "Deletes a response."),
    response_query("response.input-items", ListInputItems, InputItems, with_store(list_input_items), "Returns the input of a response."),
)
