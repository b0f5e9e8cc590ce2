"""Render Jinja2 templates to HTML. Values are escaped, and the content security policy forbids injected scripts."""

import hashlib
import json
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse, Response

from gateway.console.i18n import LANGUAGES, negotiate_language, translator
from gateway.middleware.public_url import public_path
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.services import services_of

if TYPE_CHECKING:
    from jinja2 import Environment

PACKAGE_FOLDER = Path(__file__).parent
STATIC_FOLDER = PACKAGE_FOLDER / "static"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "same-origin", "Vary": "Cookie, Accept-Language"}
"""Referrer-Policy is not `no-referrer`: with that, a browser sends `Origin: null` with a form."""

THEMES = ("auto", "light", "dark")


@cache
def template_environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # here, so that a gateway starts without it

    environment = Environment(
        loader=FileSystemLoader(PACKAGE_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"languages": LANGUAGES}
    environment.filters |= {
        "seconds": format_duration,
        "size": format_size,
        "json_text": format_json,
        "segment": lambda text: quote(str(text), safe=""),
    }
    return environment


@cache
def asset_url(name: str) -> str:
    """The path of a static file. It contains a hash of the content, so that browsers may cache the file forever."""
    digest = hashlib.sha256((STATIC_FOLDER / name).read_bytes()).hexdigest()[:12]
    return f"{CONSOLE_PATH}/static/{name}?v={digest}"


def path_and_query(request: Request) -> str:
    """Of the request, as in its first line. Not from `request.url`, whose parts may come from the Host header."""
    query = request.scope["query_string"].decode("latin-1")
    return quote(request.scope["path"], safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")


def render_page(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    return HTMLResponse(render_template(request, template, **context), status, headers=PAGE_HEADERS)


def render_template(request: Request, template: str, **context: Any) -> str:
    """A page, or a fragment of one, in the visitor's language and theme."""
    session = request.state.session
    language = negotiate_language(request.cookies.get("atelier_language"), request.headers.get("accept-language", ""))
    theme = request.cookies.get("atelier_theme", "auto")
    return template_environment().get_template(template).render(
        _=translator(language),
        public_path=partial(public_path, request),
        path=public_path(request, CONSOLE_PATH),
        asset=lambda name: public_path(request, asset_url(name)),
        language=language,
        theme=theme if theme in THEMES else "auto",
        csrf=session.csrf_token,
        key_name=session.key_name,
        login_required=services_of(request).sessions.login_required,
        current_url=path_and_query(request),
        section=request.scope["path"].removeprefix(CONSOLE_PATH).strip("/").partition("/")[0],
        **context,
    )  # fmt: skip


def format_duration(seconds: float | None) -> str:
    """Such as "20 ms", "1.5 s", "2 min 5 s" or "1 h 3 min"; empty for None."""
    match seconds:
        case None:
            return ""
        case _ if seconds < 1:
            return f"{seconds * 1000:.0f} ms"
        case _ if seconds < 60:
            return f"{seconds:.1f} s"
        case _ if seconds < 3600:
            return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
        case _:
            return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def format_size(size: float) -> str:
    """Such as "12 B", "1.5 KB" or "230 MB"; 1 KB is 1000 bytes."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
