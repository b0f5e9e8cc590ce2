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

from gateway.console.sessions import PATH
from gateway.console.words import LANGUAGES, language_for, speaker

HERE = Path(__file__).parent
STATIC = HERE / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin", "Vary": "Cookie, Accept-Language"}
"""`same-origin`: with no referrer at all, a browser hides the origin of a form from us, too."""

SECTIONS = ("make", "jobs", "dead-letters", "workshop", "chat")
THEMES = ("auto", "light", "dark")


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.globals |= {"asset": asset, "path": PATH, "languages": LANGUAGES, "sections": SECTIONS}
    made.filters |= {"seconds": seconds, "size": size, "json_text": json_text, "segment": lambda text: quote(str(text), safe="")}
    return made


@cache
def asset(name: str) -> str:
    """The address of a file of ours. It changes with the file, so that a browser may keep it for ever."""
    mark = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"{PATH}/static/{name}?v={mark}"


def page(request: Request, template: str, status: int = 200, **facts: Any) -> Response:
    """A whole page, or a part of one."""
    return HTMLResponse(render(request, template, **facts), status, headers=HEADERS)


def render(request: Request, template: str, **facts: Any) -> str:
    session = request.state.session
    language = language_for(request.cookies.get("atelier_language"), request.headers.get("accept-language", ""))
    theme = request.cookies.get("atelier_theme", "auto")
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return environment().get_template(template).render(
        _=speaker(language),
        language=language,
        theme=theme if theme in THEMES else "auto",
        csrf=session.token,
        visitor=session.name,
        keys_needed=request.app.state.sessions.needed,
        here=here,
        section=request.url.path.removeprefix(PATH).strip("/").partition("/")[0],
        now=datetime.now(UTC),
        **facts,
    )  # fmt: skip


def seconds(number: float | None) -> str:
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


def size(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
