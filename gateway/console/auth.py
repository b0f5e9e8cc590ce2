"""Login, logout, the visitor's preferences, and the static files."""

from dataclasses import replace
from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from bus.amqp.revocations import publish_revocation
from bus.errors import PublishError
from contracts.control import SessionRevoked
from gateway.console.form_body import SubmittedForm
from gateway.console.guard import ConsoleRoute, safe_redirect_path, set_cookie
from gateway.console.i18n import LANGUAGES
from gateway.console.rendering import STATIC_FOLDER, THEMES, render_page
from gateway.middleware.addresses import address_of
from gateway.middleware.rate_limit import count_failure
from gateway.middleware.sessions import CONSOLE_PATH, SESSION_COOKIE
from gateway.problems import HttpProblem
from gateway.services import services_of

YEAR_SECONDS = 365 * 24 * 3600
UNKNOWN_KEY = HttpProblem(401, "key-unknown", "Unknown API key.")

log = structlog.get_logger()

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
    """Open a session for a valid key. The failures of an address are limited; a valid key is accepted all the same."""
    sessions = services_of(request).sessions
    form: SubmittedForm = request.state.form
    next_url = safe_redirect_path(form.get("next", ""))
    session = sessions.login(form.get("key", "").strip())
    if session is None:
        refusal = count_failure(sessions.failures, address_of(request.scope), UNKNOWN_KEY)
        if refusal is not UNKNOWN_KEY:
            raise refusal
        return render_page(request, "login.html", 401, next_url=next_url, key_rejected=True)
    request.state.session = session
    return RedirectResponse(next_url, 303)


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """End the session at every gateway that runs: a copy of its cookie is refused."""
    services, session = services_of(request), request.state.session
    services.sessions.revoke(session.session_id, session.ends)
    try:
        await publish_revocation(services.publisher, SessionRevoked(session=session.session_id, ends=session.ends))
    except PublishError as error:
        log.warning("session.revocation_unsent", error=str(error))
    request.state.session = replace(session, is_new=False)
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
