"""Login, logout, the visitor's preferences, and the static files."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from gateway.console.guard import ConsoleRoute, SubmittedForm, safe_redirect_path, set_cookie
from gateway.console.i18n import LANGUAGES
from gateway.console.rendering import STATIC_FOLDER, THEMES, render_page
from gateway.middleware.sessions import CONSOLE_PATH, SESSION_COOKIE
from gateway.problems import HttpProblem
from gateway.services import services_of

YEAR_SECONDS = 365 * 24 * 3600

router = APIRouter(prefix=CONSOLE_PATH, route_class=ConsoleRoute, include_in_schema=False)
static_router = APIRouter(prefix=CONSOLE_PATH, include_in_schema=False)
"""Needs no session: the files are the same for every visitor."""


@router.get("")
async def index(request: Request) -> Response:
    return RedirectResponse(f"{CONSOLE_PATH}/make", 303)


@router.get("/login")
async def login_page(request: Request, next_url: Annotated[str, Query(alias="next", max_length=2000)] = CONSOLE_PATH) -> Response:
    if request.state.session.key_name or not services_of(request).sessions.login_required:
        return RedirectResponse(safe_redirect_path(next_url), 303)
    return render_page(request, "login.html", next_url=safe_redirect_path(next_url), key_rejected=False)


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Open a session for a valid key. Attempts are rate-limited by address."""
    sessions = services_of(request).sessions
    form: SubmittedForm = request.state.form
    rate = sessions.login_limiter.take(request.client.host if request.client else "")
    if rate.retry_after_seconds is not None:
        raise HttpProblem(
            429, "too many logins", f"Try again in {rate.retry_after_seconds} s.", {"Retry-After": str(rate.retry_after_seconds)}
        )
    next_url = safe_redirect_path(form.get("next", ""))
    session = sessions.login(form.get("key", "").strip())
    if session is None:
        return render_page(request, "login.html", 401, next_url=next_url, key_rejected=True)
    request.state.session = session
    return RedirectResponse(next_url, 303)


@router.post("/logout")
async def log_out(request: Request) -> Response:
    response = RedirectResponse(f"{CONSOLE_PATH}/login", 303)
    set_cookie(request, response, SESSION_COOKIE, "", 0)
    return response


@router.post("/choices")
async def set_preferences(request: Request) -> Response:
    """Store language and theme in cookies for a year."""
    form: SubmittedForm = request.state.form
    response = RedirectResponse(safe_redirect_path(form.get("next", "")), 303)
    if form.get("language") in LANGUAGES:
        set_cookie(request, response, "atelier_language", form["language"], YEAR_SECONDS)
    if form.get("theme") in THEMES:
        set_cookie(request, response, "atelier_theme", form["theme"], YEAR_SECONDS)
    return response


@static_router.get("/static/{name}")
async def static_file(name: Annotated[str, Path(pattern=r"^[a-z][a-z.-]{1,40}$")]) -> Response:
    if not (STATIC_FOLDER / name).is_file():
        raise HttpProblem(404, "file-unknown", f"the console has no file {name!r}")
    return FileResponse(STATIC_FOLDER / name, headers={"Cache-Control": f"public, max-age={YEAR_SECONDS}, immutable"})
