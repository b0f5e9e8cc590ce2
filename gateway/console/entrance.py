"""In and out of the console, the visitor's choices, and the files that every page loads."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from gateway.console.counter import ConsoleRoute, Form, back_to, set_cookie
from gateway.console.rendering import STATIC, THEMES, page
from gateway.console.sessions import COOKIE, PATH, Sessions
from gateway.console.words import LANGUAGES
from gateway.problems import Refused

YEAR = 365 * 24 * 3600

router = APIRouter(prefix=PATH, route_class=ConsoleRoute, include_in_schema=False)
files = APIRouter(prefix=PATH, include_in_schema=False)
"""Without a session: they are the same for everybody."""


@router.get("")
async def front(request: Request) -> Response:
    return RedirectResponse(f"{PATH}/make", 303)


@router.get("/login")
async def login_page(request: Request, back: Annotated[str, Query(alias="next", max_length=2000)] = PATH) -> Response:
    if request.state.session.name or not request.app.state.sessions.needed:
        return RedirectResponse(back_to(back), 303)
    return page(request, "login.html", back=back_to(back), wrong=False)


@router.post("/login")
async def log_in(request: Request) -> Response:
    """A key's owner gets a new session; whoever guesses is slowed down."""
    sessions: Sessions = request.app.state.sessions
    form: Form = request.state.form
    rate = sessions.tries.take(request.client.host if request.client else "")
    if rate.retry_seconds is not None:
        raise Refused(429, "too many logins", f"Try again in {rate.retry_seconds} s.", {"Retry-After": str(rate.retry_seconds)})
    session = sessions.login(form.get("key", "").strip())
    if session is None:
        return page(request, "login.html", 401, back=back_to(form.get("next", "")), wrong=True)
    request.state.session = session
    return RedirectResponse(back_to(form.get("next", "")), 303)


@router.post("/logout")
async def log_out(request: Request) -> Response:
    response = RedirectResponse(f"{PATH}/login", 303)
    set_cookie(request, response, COOKIE, "", 0)
    return response


@router.post("/choices")
async def choose(request: Request) -> Response:
    """Language and theme, for a year."""
    form: Form = request.state.form
    response = RedirectResponse(back_to(form.get("next", "")), 303)
    if form.get("language") in LANGUAGES:
        set_cookie(request, response, "atelier_language", form["language"], YEAR)
    if form.get("theme") in THEMES:
        set_cookie(request, response, "atelier_theme", form["theme"], YEAR)
    return response


@files.get("/static/{name}")
async def static(name: Annotated[str, Path(pattern=r"^[a-z][a-z.-]{1,40}$")]) -> Response:
    if not (STATIC / name).is_file():
        raise Refused(404, "file-unknown", f"the console has no file {name!r}")
    return FileResponse(STATIC / name, headers={"Cache-Control": f"public, max-age={YEAR}, immutable"})
