"""From facts to HTML: Jinja2 with everything escaped, and the headers that keep a page from running what is not ours."""

import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gateway.console.i18n import LANGUAGES, negotiate_language, translator
from gateway.middleware.sessions import CONSOLE_PATH

PACKAGE_FOLDER = Path(__file__).parent
STATIC_FOLDER = PACKAGE_FOLDER / "static"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "same-origin", "Vary": "Cookie, Accept-Language"}
"""`same-origin`: with no referrer at all, a browser hides the origin of a form from us, too."""

SECTIONS = ("make", "jobs", "dead-letters", "workshop", "chat")
THEMES = ("auto", "light", "dark")


@cache
def template_environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(PACKAGE_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"asset": asset_url, "path": CONSOLE_PATH, "languages": LANGUAGES, "sections": SECTIONS}
    made.filters |= {
        "seconds": format_duration,
        "size": format_size,
        "json_text": format_json,
        "segment": lambda text: quote(str(text), safe=""),
    }
    return made


@cache
def asset_url(name: str) -> str:
    """The address of a file of ours. It changes with the file, so that a browser may keep it for ever."""
    mark = hashlib.sha256((STATIC_FOLDER / name).read_bytes()).hexdigest()[:12]
    return f"{CONSOLE_PATH}/static/{name}?v={mark}"


def render_page(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """A whole page, or a part of one."""
    return HTMLResponse(render_template(request, template, **context), status, headers=PAGE_HEADERS)


def render_template(request: Request, template: str, **context: Any) -> str:
    session = request.state.session
    language = negotiate_language(request.cookies.get("atelier_language"), request.headers.get("accept-language", ""))
    theme = request.cookies.get("atelier_theme", "auto")
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return template_environment().get_template(template).render(
        _=translator(language),
        language=language,
        theme=theme if theme in THEMES else "auto",
        csrf=session.csrf_token,
        visitor=session.key_name,
        keys_needed=request.app.state.sessions.login_required,
        here=here,
        section=request.url.path.removeprefix(CONSOLE_PATH).strip("/").partition("/")[0],
        now=datetime.now(UTC),
        **context,
    )  # fmt: skip


def format_duration(number: float | None) -> str:
    """A duration as people say it."""
    match number:
        case None:
            return ""
        case short if short < 1:
            return f"{short * 1000:.0f} ms"
        case some if some < 60:
            return f"{some:.1f} s"
        case long if long < 3600:
            return f"{long // 60:.0f} min {long % 60:.0f} s"
        case _:
            return f"{number // 3600:.0f} h {number % 3600 // 60:.0f} min"


def format_size(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def format_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
