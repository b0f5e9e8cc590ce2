"""All pages of the console."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.console import entrance, job_pages, letter_pages, make, talk, workshop
from gateway.console.counter import ConsoleRoute
from gateway.console.sessions import PATH
from gateway.problems import Refused

nowhere = APIRouter(prefix=PATH, route_class=ConsoleRoute, include_in_schema=False)


@nowhere.get("/{rest:path}")
async def no_page(request: Request, rest: str) -> Response:
    raise Refused(404, "page-unknown", f"the console has no page {rest!r}")


ROUTERS = (entrance.files, entrance.router, make.router, job_pages.router, letter_pages.router, workshop.router, talk.router, nowhere)
"""The last takes what no other has taken."""
