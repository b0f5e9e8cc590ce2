"""Publishes a command or a query and awaits its reply. Jobs are submitted by `gateway/jobs/submission.py` instead."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request

from bus.amqp.request_reply import ReplyChunk, ReplyFault, ReplyTimeout, RequestClient
from gateway.callers import caller_of
from gateway.deadlines import request_timeout
from gateway.settings import GatewaySettings

_CALLER = "\0caller"
"""The default of `tenant`: the caller. None cannot be the default, since it is a value of its own: no tenant."""


class CommandClient:
    """Every method raises ReplyFault, ReplyTimeout and PublishError. A client that disconnects cancels the work."""

    def __init__(self, requests: RequestClient, settings: GatewaySettings) -> None:
        self.requests, self.settings = requests, settings

    async def call(
        self,
        request: Request,
        step: str,
        command: dict[str, Any],
        *,
        seconds: float | None = None,
        tenant: str | None = _CALLER,
        job_id: str | None = None,
    ) -> dict[str, Any]:
        """The result of a command within `seconds` (default: `request_timeout`). Raises HttpProblem(400) like `request_timeout`."""
        seconds = seconds or request_timeout(request.headers, self.settings)
        tenant = caller_of(request) if tenant == _CALLER else tenant
        return await self.requests.request(step, command, seconds=seconds, tenant=tenant, job_id=job_id)

    async def send(self, request: Request, step: str, command: dict[str, Any], *, job_id: str, seconds: float) -> None:
        """Publish a command whose result is not awaited; it is dropped when it has not ended within `seconds`. Raises PublishError."""
        await self.requests.send(step, command, seconds=seconds, tenant=caller_of(request), job_id=job_id)

    def stream(self, request: Request, step: str, command: dict[str, Any]) -> AsyncGenerator[ReplyChunk]:
        """The deltas of a result, then the result. Closing the generator before its end (`aclosing`) cancels the work."""
        seconds = request_timeout(request.headers, self.settings)
        return self.requests.stream(step, command, seconds=seconds, tenant=caller_of(request))

    async def query(
        self, step: str, fields: dict[str, Any] | None = None, *, seconds: float | None = None, tenant: str | None = None
    ) -> dict[str, Any]:
        """The reply to a query within `seconds` (default: GATEWAY_QUESTION_SECONDS). Fields that are None are left out.

        ReplyFault and ReplyTimeout carry the id of the job that the query is about, if any.
        """
        seconds = seconds or self.settings.question_seconds
        body = {name: value for name, value in (fields or {}).items() if value is not None}
        job_id = body.get("job_id")
        try:
            return await self.requests.request(step, body, seconds=seconds, tenant=tenant)
        except ReplyFault as error:
            raise ReplyFault(error.fault, job_id) from None
        except ReplyTimeout:
            raise ReplyTimeout(job_id, seconds) from None
