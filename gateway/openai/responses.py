"""OpenAI's `/v1/responses`: answers that the text worker generates and stores, streams that any gateway continues, and their cancellation.

Every stream is read from the stored events, so that nothing is lost with a gateway.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from bus.amqp.request_reply import ReplyFault
from bus.errors import PublishError
from contracts.responses import CreateResponse, StoredResponse
from gateway.deadlines import request_timeout
from gateway.openai.errors import ERROR_RESPONSES, OpenAIRoute, openai_error
from gateway.openai.models import DEFAULT_TEXT_MODEL, current_text_status, lora_adapter_of
from gateway.openai.response_errors import to_response_problem
from gateway.openai.response_events import cancel, events_after, forget, query, wait_for_end
from gateway.openai.response_objects import DeletedResponse, InputItemList, ResponseObject
from gateway.openai.response_requests import ResponseBody, check_include
from gateway.problems import REQUEST_ERRORS, HttpProblem
from gateway.services import services_of
from gateway.sse import json_data, json_event, sse_response

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

UPLOAD_PATHS = frozenset({"/v1/responses"})
QUERY_STEPS = tuple(f"response.{name}" for name in ("create", "run", "get", "events", "cancel", "delete", "input-items"))


@router.post("/responses", response_model=ResponseObject, responses=ERROR_RESPONSES)
async def create_response(request: Request, body: ResponseBody) -> Response:
    """Generate a response; with `stream` as server-sent events, with `background` without waiting for it.

    A disconnect cancels a response that is not in the background.
    """
    settings = services_of(request).settings
    body.check(settings.max_body_bytes)
    seconds = request_timeout(request.headers, settings, settings.job_seconds if body.background else None)
    lora = await lora_adapter_of(request, body.model)
    response_id = f"resp_{uuid4().hex}"
    deadline = datetime.now(UTC) + timedelta(seconds=seconds)
    command = await body.command(request, response_id, await model_name(request, body.model, lora), lora, deadline)
    if body.stream:
        return await sse_response(request, stream_new(request, command, seconds), error_event)
    created = await start(request, command, seconds)
    if command.request.background:
        return JSONResponse(created.response)
    return JSONResponse(await finish_in_foreground(request, command))


async def model_name(request: Request, model: str, lora: str | None) -> str:
    """The name of the model that is served, where it is known."""
    status = await current_text_status(request)
    return lora or (status.model_name if status and model == DEFAULT_TEXT_MODEL else model)


async def start(request: Request, command: CreateResponse, seconds: float) -> StoredResponse:
    """Store the response, and have it generated: both, even if the client disconnects meanwhile. Raises HttpProblem."""
    starting = asyncio.ensure_future(store_and_run(request, command, seconds))
    try:
        return await asyncio.shield(starting)
    except REQUEST_ERRORS as error:
        raise to_response_problem(error) from error
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        if not starting.exception():
            await asyncio.shield(clean_up(request, command, has_ended=False))
        raise


async def store_and_run(request: Request, command: CreateResponse, seconds: float) -> StoredResponse:
    """Raises REQUEST_ERRORS."""
    created = await query(request, "response.create", command.model_dump(mode="json", exclude_none=True))
    run = {"response_id": command.response_id}
    try:
        await services_of(request).commands.send(request, "response.run", run, job_id=command.response_id, seconds=seconds)
    except PublishError:
        await forget(request, command.response_id)
        raise
    return StoredResponse.model_validate(created)


async def finish_in_foreground(request: Request, command: CreateResponse) -> dict[str, Any]:
    """The response when it has ended. Raises HttpProblem for one that failed, as for a chat completion."""
    has_ended = False
    try:
        found = await wait_for_end(request, command.response_id)
        has_ended = True
    except REQUEST_ERRORS as error:
        raise to_response_problem(error) from error
    finally:
        await asyncio.shield(clean_up(request, command, has_ended))
    if found.fault:
        raise to_response_problem(ReplyFault(found.fault))
    return found.response


async def stream_new(request: Request, command: CreateResponse, seconds: float) -> AsyncGenerator[str]:
    """The events of a new response. Closing the generator before its end cancels one that is not in the background."""
    await start(request, command, seconds)
    has_ended = False
    try:
        async with aclosing(stream_events(request, command.response_id, -1, unstored=True)) as events:
            async for event in events:
                yield event
        has_ended = True
    finally:
        await asyncio.shield(clean_up(request, command, has_ended))


async def clean_up(request: Request, command: CreateResponse, has_ended: bool) -> None:
    """After the client of a new response is gone, or has all of it."""
    if command.request.background:
        return
    if not has_ended:
        await cancel(request, command.response_id)
    if not command.request.store:
        await forget(request, command.response_id)


async def stream_events(request: Request, response_id: str, after: int, *, unstored: bool = False) -> AsyncGenerator[str]:
    """A failure before the first event is raised as HttpProblem; a later one is the event `error`, from which a client may resume."""
    started = False
    async with aclosing(events_after(request, response_id, after, unstored=unstored)) as events:
        try:
            async for event in events:
                yield json_event(event["type"], event)
                started = True
        except REQUEST_ERRORS as error:
            if not started:
                raise to_response_problem(error) from error
            yield error_event(to_response_problem(error))


def error_event(problem: HttpProblem) -> str:
    """OpenAI's clients raise it."""
    return "event: error\n" + json_data(openai_error(problem))


async def ask(request: Request, step: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Raises HttpProblem."""
    try:
        return await query(request, step, fields)
    except REQUEST_ERRORS as error:
        raise to_response_problem(error) from error


IncludeQuery = Annotated[list[str] | None, Query(max_length=16)]
BracketedIncludeQuery = Annotated[list[str] | None, Query(alias="include[]", max_length=16)]


@router.get("/responses/{response_id}", response_model=ResponseObject, responses=ERROR_RESPONSES)
async def get_response(
    request: Request,
    response_id: str,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=-1, lt=2**31)] = None,
    include: IncludeQuery = None,
    include_in_brackets: BracketedIncludeQuery = None,
    include_obfuscation: Literal[False, "false"] | None = None,
) -> Response:
    """A stored response; with `stream` its events, those after the number `starting_after`, until it has ended."""
    check_include([*(include or ()), *(include_in_brackets or ())], "include")
    if stream:
        after = -1 if starting_after is None else starting_after
        return await sse_response(request, stream_events(request, response_id, after), error_event)
    if starting_after is not None:
        raise HttpProblem(400, "invalid-request", "starting_after needs stream=true", param="starting_after")
    found = await ask(request, "response.get", {"response_id": response_id[:255]})
    return JSONResponse(found["response"])


@router.delete("/responses/{response_id}", response_model=DeletedResponse, responses=ERROR_RESPONSES)
async def delete_response(request: Request, response_id: str) -> Response:
    """Delete a response with its items. One that is being generated is stopped."""
    await ask(request, "response.delete", {"response_id": response_id[:255]})
    await services_of(request).commands.requests.cancel(response_id[:255])
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.post("/responses/{response_id}/cancel", response_model=ResponseObject, responses=ERROR_RESPONSES)
async def cancel_response(request: Request, response_id: str) -> Response:
    """Cancel a response in the background. One that has ended stays as it is."""
    found = await ask(request, "response.cancel", {"response_id": response_id[:255]})
    if found["status"] == "cancelled":
        await services_of(request).commands.requests.cancel(response_id[:255])
    return JSONResponse(found["response"])


@router.get("/responses/{response_id}/input_items", response_model=InputItemList, responses=ERROR_RESPONSES)
async def list_input_items(
    request: Request,
    response_id: str,
    order: Literal["asc", "desc"] = "desc",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=255)] = None,
    include: IncludeQuery = None,
    include_in_brackets: BracketedIncludeQuery = None,
) -> Response:
    """The items of the response's own input, a page at a time."""
    check_include([*(include or ()), *(include_in_brackets or ())], "include")
    fields = {"response_id": response_id[:255], "order": order, "limit": limit, "after": after}
    page = await ask(request, "response.input-items", fields)
    items = page["items"]
    ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
    return JSONResponse({"object": "list", "data": items, "has_more": page["has_more"]} | ends)
