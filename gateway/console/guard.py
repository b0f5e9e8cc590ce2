"""The route class of every page: session, login redirect, CSRF check of POST requests, and error pages."""

import hmac
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import quote

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from bus.errors import TemporaryError
from gateway.console.form_body import read_form
from gateway.console.rendering import path_and_query, render_page
from gateway.middleware.origins import is_from_other_site
from gateway.middleware.public_url import public_origin, public_path
from gateway.middleware.sessions import CONSOLE_PATH, SESSION_COOKIE, Session
from gateway.problems import REQUEST_ERRORS, HttpProblem, to_problem
from gateway.services import services_of

MAX_LOGGED_PATH_CHARS = 512
FORGED_FORM_DETAIL = (
    "The form was not submitted from a page of this session (CSRF check failed). "
    "Nothing was changed; reload the page and submit it again."
)  # fmt: skip
PUBLIC_PATHS = frozenset({f"{CONSOLE_PATH}/login", f"{CONSOLE_PATH}/choices"})
"""Paths that need no login."""

EXPECTED_ERRORS = (HttpProblem, *REQUEST_ERRORS, TemporaryError, RequestValidationError, HTTPException)
Model = TypeVar("Model", bound=BaseModel)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]

log = structlog.get_logger()


class ConsoleRoute(APIRoute):
    """Sets `request.state.session` and, for a POST, `request.state.form`; renews the session cookie; renders errors as pages."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_with_session(request: Request) -> Response:
            sessions = services_of(request).sessions
            cookie_session = sessions.read_cookie(request.headers.get("cookie", ""))
            request.state.session = sessions.renew(cookie_session) if cookie_session else sessions.create()
            try:
                response = await _authorize_and_handle(request, handle, cookie_session)
            except EXPECTED_ERRORS as error:
                response = error_page(request, error)
            except Exception as error:
                log.exception("request.failed", method=request.method, path=request.scope["path"][:MAX_LOGGED_PATH_CHARS])
                response = error_page(request, error)
            set_session_cookie(request, response, request.state.session)
            return response

        return handle_with_session


async def _authorize_and_handle(request: Request, handle: Handler, cookie_session: Session | None) -> Response:
    login_required = services_of(request).sessions.login_required
    if login_required and not request.state.session.key_name and request.scope["path"] not in PUBLIC_PATHS:
        return redirect_to_login(request)
    if request.method == "POST":
        request.state.form = await read_form(request)
        if not cookie_session or not is_csrf_valid(request, cookie_session):
            raise HttpProblem(403, "form-refused", FORGED_FORM_DETAIL)
    return await handle(request)


def is_csrf_valid(request: Request, session: Session) -> bool:
    """Whether the form has the session's CSRF token and, as far as the browser says, comes from the same origin."""
    own = [origin for origin in [public_origin(request.scope)] if origin]
    return not is_from_other_site(request.headers, own) and hmac.compare_digest(
        request.state.form.get("csrf", "").encode(errors="replace"), session.csrf_token.encode()
    )


def validate_input(model: type[Model], fields: dict[str, Any]) -> Model:
    """The model of what a visitor has entered. Raises HttpProblem(422) with the fields that are wrong, without their values."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()[:10])
        raise HttpProblem(422, "input-invalid", "; ".join(reasons)) from None


def redirect_to_login(request: Request) -> Response:
    """Redirect to the login, which leads back to a GET's address. For an htmx request the whole page is redirected."""
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"HX-Redirect": f"{CONSOLE_PATH}/login"})
    next_url = quote(path_and_query(request)) if request.method == "GET" else ""
    return RedirectResponse(f"{CONSOLE_PATH}/login" + (f"?next={next_url}" if next_url else ""), 303)


def safe_redirect_path(url: str) -> str:
    """`url` when it is a path within the console, else the console's start page. Prevents open redirects."""
    inside = url == CONSOLE_PATH or url.startswith((f"{CONSOLE_PATH}/", f"{CONSOLE_PATH}?"))
    return url if inside and "\\" not in url and not any(ord(character) < 33 for character in url) else CONSOLE_PATH


def set_session_cookie(request: Request, response: Response, session: Session) -> None:
    """Set the cookie of a session that the browser does not have yet."""
    if session.is_new:
        set_cookie(request, response, SESSION_COOKIE, session.cookie_value)


def set_cookie(request: Request, response: Response, name: str, value: str, seconds: float | None = None) -> None:
    """Set an HttpOnly cookie for the console's paths; without `seconds` it ends with the browser session."""
    max_age = None if seconds is None else round(seconds)
    secure = request.url.scheme == "https" or services_of(request).settings.console_secure
    response.set_cookie(name, value, max_age=max_age, path=public_path(request, CONSOLE_PATH), httponly=True, samesite="lax", secure=secure)


def error_page(request: Request, error: Exception) -> Response:
    problem = to_problem(error)
    response = render_page(request, "error.html", problem.status, title=problem.title, detail=problem.detail)
    response.headers.update(problem.headers)
    return response
