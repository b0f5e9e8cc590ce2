"""What every request to the console meets first: the session, the token of a change; and a page for what goes wrong."""

import hmac
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qs, quote

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from bus.errors import PublishError
from gateway.console.rendering import render_page
from gateway.middleware.sessions import CONSOLE_PATH, SESSION_COOKIE, Session, Sessions
from gateway.problems import HttpProblem, to_problem

FORGED_FORM_DETAIL = (
    "This form did not come from a page of this session. Nothing was done; go back, load the page again, and send it once more."
)
PUBLIC_PATHS = frozenset({f"{CONSOLE_PATH}/login", f"{CONSOLE_PATH}/choices"})
"""What a visitor may see who is not logged in."""


class SubmittedForm(dict[str, str]):
    """The fields of a form; of a field that came twice, the last."""

    def non_blank(self, *names: str) -> dict[str, str]:
        """The fields among these that are not blank."""
        return {name: self[name].strip() for name in names if self.get(name, "").strip()}


class ConsoleRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def met(request: Request) -> Response:
            sessions: Sessions = request.app.state.sessions
            found = sessions.read_cookie(request.headers.get("cookie", ""))
            session = sessions.renew(found) if found else sessions.create()
            request.state.session = session
            try:
                response = await _authorize_and_handle(request, handle, sessions, found)
            except (HttpProblem, ReplyFault, ReplyTimeout, PublishError, RequestValidationError, HTTPException) as error:
                response = error_page(request, error)
            set_session_cookie(request, response, request.state.session)
            return response

        return met


async def _authorize_and_handle(
    request: Request, handle: Callable[[Request], Coroutine[Any, Any, Response]], sessions: Sessions, cookie_session: Session | None
) -> Response:
    if sessions.login_required and not request.state.session.key_name and request.url.path not in PUBLIC_PATHS:
        return redirect_to_login(request)
    if request.method == "POST":
        request.state.form = await read_form(request)
        if not cookie_session or not is_csrf_valid(request, cookie_session):
            raise HttpProblem(403, "form-refused", FORGED_FORM_DETAIL)
    return await handle(request)


def is_csrf_valid(request: Request, session: Session) -> bool:
    """Whether the form came from a page of ours that this very session was shown."""
    near = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    return near and hmac.compare_digest(request.state.form.get("csrf", "").encode(errors="replace"), session.csrf_token.encode())


async def read_form(request: Request) -> SubmittedForm:
    """Raises Refused for what is no form of ours."""
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=500)
    except ValueError as error:
        raise HttpProblem(400, "form-unreadable", f"the form cannot be read: {error}") from None
    return SubmittedForm({name: values[-1].replace("\r\n", "\n") for name, values in fields.items()})


def redirect_to_login(request: Request) -> Response:
    """To the login, and from there back. A part of a page takes the whole page along."""
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"HX-Redirect": f"{CONSOLE_PATH}/login"})
    back = quote(request.url.path + (f"?{request.url.query}" if request.url.query else "")) if request.method == "GET" else ""
    return RedirectResponse(f"{CONSOLE_PATH}/login" + (f"?next={back}" if back else ""), 303)


def safe_redirect_path(url: str) -> str:
    """An address within the console, whatever a form says."""
    inside = url == CONSOLE_PATH or url.startswith((f"{CONSOLE_PATH}/", f"{CONSOLE_PATH}?"))
    return url if inside and "\\" not in url and not any(ord(letter) < 33 for letter in url) else CONSOLE_PATH


def set_session_cookie(request: Request, response: Response, session: Session) -> None:
    """Give the browser a session that it does not have yet."""
    if session.is_new:
        set_cookie(request, response, SESSION_COOKIE, session.cookie_value)


def set_cookie(request: Request, response: Response, name: str, value: str, seconds: float | None = None) -> None:
    age = None if seconds is None else round(seconds)
    secure = request.url.scheme == "https" or request.app.state.settings.console_secure
    response.set_cookie(name, value, max_age=age, path=CONSOLE_PATH, httponly=True, samesite="lax", secure=secure)


def error_page(request: Request, error: Exception) -> Response:
    refused = to_problem(error)
    response = render_page(request, "trouble.html", refused.status, title=refused.title, detail=refused.detail)
    response.headers.update(refused.headers)
    return response
