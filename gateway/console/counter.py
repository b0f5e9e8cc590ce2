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

from bus.errors import PublishError
from bus.request_reply import ReplyFault, ReplyTimeout
from gateway.console.rendering import page
from gateway.console.sessions import COOKIE, PATH, Session, Sessions
from gateway.problems import Refused, said

FORGED = "This form did not come from a page of this session. Nothing was done; go back, load the page again, and send it once more."
STRANGERS = frozenset({f"{PATH}/login", f"{PATH}/choices"})
"""What a visitor may see who is not logged in."""


class Form(dict[str, str]):
    """The fields of a form; of a field that came twice, the last."""

    def said(self, *names: str) -> dict[str, str]:
        """The fields among these that are not blank."""
        return {name: self[name].strip() for name in names if self.get(name, "").strip()}


class ConsoleRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def met(request: Request) -> Response:
            sessions: Sessions = request.app.state.sessions
            found = sessions.read(request.headers.get("cookie", ""))
            session = sessions.renewed(found) if found else sessions.begin()
            request.state.session = session
            try:
                response = await _handled(request, handle, sessions, found)
            except (Refused, ReplyFault, ReplyTimeout, PublishError, RequestValidationError, HTTPException) as error:
                response = trouble(request, error)
            keep(request, response, request.state.session)
            return response

        return met


async def _handled(
    request: Request, handle: Callable[[Request], Coroutine[Any, Any, Response]], sessions: Sessions, found: Session | None
) -> Response:
    if sessions.needed and not request.state.session.name and request.url.path not in STRANGERS:
        return to_login(request)
    if request.method == "POST":
        request.state.form = await form_of(request)
        if not found or not genuine(request, found):
            raise Refused(403, "form-refused", FORGED)
    return await handle(request)


def genuine(request: Request, session: Session) -> bool:
    """Whether the form came from a page of ours that this very session was shown."""
    near = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    return near and hmac.compare_digest(request.state.form.get("csrf", "").encode(errors="replace"), session.token.encode())


async def form_of(request: Request) -> Form:
    """Raises Refused for what is no form of ours."""
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=500)
    except ValueError as error:
        raise Refused(400, "form-unreadable", f"the form cannot be read: {error}") from None
    return Form({name: values[-1].replace("\r\n", "\n") for name, values in fields.items()})


def to_login(request: Request) -> Response:
    """To the login, and from there back. A part of a page takes the whole page along."""
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"HX-Redirect": f"{PATH}/login"})
    back = quote(request.url.path + (f"?{request.url.query}" if request.url.query else "")) if request.method == "GET" else ""
    return RedirectResponse(f"{PATH}/login" + (f"?next={back}" if back else ""), 303)


def back_to(address: str) -> str:
    """An address within the console, whatever a form says."""
    inside = address == PATH or address.startswith((f"{PATH}/", f"{PATH}?"))
    return address if inside and "\\" not in address and not any(ord(letter) < 33 for letter in address) else PATH


def keep(request: Request, response: Response, session: Session) -> None:
    """Give the browser a session that it does not have yet."""
    if session.fresh:
        set_cookie(request, response, COOKIE, session.value)


def set_cookie(request: Request, response: Response, name: str, value: str, seconds: float | None = None) -> None:
    age = None if seconds is None else round(seconds)
    secure = request.url.scheme == "https" or request.app.state.settings.console_secure
    response.set_cookie(name, value, max_age=age, path=PATH, httponly=True, samesite="lax", secure=secure)


def trouble(request: Request, error: Exception) -> Response:
    refused = said(error)
    response = page(request, "trouble.html", refused.status, title=refused.title, detail=refused.detail)
    response.headers.update(refused.headers)
    return response
