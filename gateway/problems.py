"""Errors as problem documents (RFC 9457)."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from bus.errors import PublishError
from bus.request_reply import ReplyFault, ReplyTimeout

STATUS = {"job-unknown": 404, "invalid-message": 422, "deadline-exceeded": 504, "cancelled": 409}
"""HTTP status of a fault's code; every other fault is a 502: the gateway is well, what stands behind it is not."""


def problem(status: int, title: str, detail: str, **more: str) -> JSONResponse:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail} | more
    return JSONResponse(body, status, media_type="application/problem+json")


def answer_with_problems(app: FastAPI) -> None:
    """Turn what may go wrong behind the gateway into problem documents."""

    @app.exception_handler(ReplyFault)
    async def fault(_: Request, error: ReplyFault) -> JSONResponse:
        return problem(STATUS.get(error.fault.code, 502), error.fault.code, error.fault.message, step=error.fault.step)

    @app.exception_handler(ReplyTimeout)
    async def timeout(_: Request, error: ReplyTimeout) -> JSONResponse:
        return problem(504, "no reply in time", str(error), job_id=error.job_id)

    @app.exception_handler(PublishError)
    async def away(_: Request, error: PublishError) -> JSONResponse:
        response = problem(503, "the bus is away", str(error))
        response.headers["Retry-After"] = "5"
        return response
