"""All routes of the console, in the order in which they must be matched."""

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gateway.console import auth, chat_page, dead_letter_pages, gallery, job_pages, make, workers
from gateway.console.guard import ConsoleRoute
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.problems import HttpProblem

start_router = APIRouter(include_in_schema=False)
moved_router = APIRouter(prefix=CONSOLE_PATH, route_class=ConsoleRoute, include_in_schema=False)
not_found_router = APIRouter(prefix=CONSOLE_PATH, route_class=ConsoleRoute, include_in_schema=False)


@start_router.get("/")
async def redirect_to_chat() -> Response:
    """The chat page, where the page of a vLLM deployment is: at the root of its port."""
    return RedirectResponse(chat_page.CHAT_PATH, 303)


@moved_router.get("/workshop")
async def redirect_to_workers() -> Response:
    """The former address of the page Workers, kept for one release."""
    return RedirectResponse(workers.PAGE_PATH, 308)


@not_found_router.get("/{rest:path}")
async def page_not_found(request: Request, rest: str) -> Response:
    raise HttpProblem(404, "page-unknown", f"the console has no page {rest!r}")


ROUTERS = (
    start_router,
    auth.static_router,
    auth.router,
    make.router,
    gallery.router,
    job_pages.router,
    dead_letter_pages.router,
    workers.router,
    chat_page.router,
    moved_router,
    not_found_router,
)
"""`not_found_router` matches every path and is last."""
