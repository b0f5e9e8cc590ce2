"""Waits for stored responses: for their end, and for their events, as a stream that any gateway continues after any number."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from fastapi import Request

from bus.amqp.request_reply import ReplyFault
from contracts.responses import MAX_WAIT_SECONDS, StoredResponse
from gateway.callers import caller_of
from gateway.deadlines import request_timeout
from gateway.openai.response_errors import DATABASE_AWAY
from gateway.problems import REQUEST_ERRORS
from gateway.services import services_of

PATIENCE_SECONDS = 30.0
"""So long a wait goes on while the broker, the workers or their database are away. Its queries change nothing: each may be repeated."""
PAUSE_SECONDS = 0.5
AWAY_CODES = frozenset({DATABASE_AWAY, "deadline-exceeded"})
"""Of a query that its worker began, and could not answer in time."""

Query = dict[str, Any]


def patience(request: Request, seconds: float) -> float:
    """`seconds`, or less where the client waits for less. Raises HttpProblem(400) for an invalid timeout of the client."""
    return min(seconds, request_timeout(request.headers, services_of(request).settings))


async def query(request: Request, step: str, fields: Query) -> Query:
    """Raises REQUEST_ERRORS, and as `patience`."""
    services = services_of(request)
    seconds = patience(request, services.settings.question_seconds) + fields.get("wait_seconds", 0)
    return await services.commands.query(step, fields, seconds=seconds, tenant=caller_of(request))


async def query_patiently(request: Request, step: str, fields: Query) -> Query:
    """The reply, however often the query must be sent within PATIENCE_SECONDS, or the client's own timeout. Raises as `query`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience(request, PATIENCE_SECONDS)
    while True:
        try:
            return await query(request, step, fields)
        except REQUEST_ERRORS as error:
            is_away = not isinstance(error, ReplyFault) or error.fault.code in AWAY_CODES
            if not is_away or loop.time() >= until:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


async def wait_for_end(request: Request, response_id: str) -> StoredResponse:
    """The response when it has ended. Raises REQUEST_ERRORS."""
    fields = {"response_id": response_id, "unstored": True, "wait_seconds": patience(request, MAX_WAIT_SECONDS)}
    while True:
        found = StoredResponse.model_validate(await query_patiently(request, "response.get", fields))
        if found.status not in ("queued", "in_progress"):
            return found


async def events_after(request: Request, response_id: str, after: int, *, unstored: bool = False) -> AsyncGenerator[dict[str, Any]]:
    """Each event after the number `after`, until the response has ended. Raises REQUEST_ERRORS."""
    while True:
        fields = {"response_id": response_id, "after": after, "unstored": unstored, "wait_seconds": patience(request, MAX_WAIT_SECONDS)}
        page = await query_patiently(request, "response.events", fields)
        for event in page["events"]:
            yield event
            after = event["sequence_number"]
        if page["ended"]:
            return


async def cancel(request: Request, response_id: str) -> None:
    """End a response in the foreground whose client is gone. What it has is kept as cancelled, if it is to be stored."""
    fields = {"response_id": response_id, "foreground": True}
    await try_to(lambda: query(request, "response.cancel", fields))
    await try_to(lambda: services_of(request).commands.requests.cancel(response_id))


async def forget(request: Request, response_id: str) -> None:
    """Delete a response that is not to be stored, or cannot run. The worker does it some minutes after its end, when this fails."""
    await try_to(lambda: query(request, "response.delete", {"response_id": response_id}))


async def try_to(call: Callable[[], Awaitable[Any]]) -> None:
    try:
        await call()
    except REQUEST_ERRORS:
        return
