"""Addresses that are handed out: below the prefix, and with the scheme and the host, by which clients reach the gateway.

`gateway/middleware/proxies.py` finds them for each request: from GATEWAY_PUBLIC_URL, GATEWAY_ROOT_PATH, what trusted proxies say, or the
request itself. Routes, settings and checks know only paths without the prefix.
"""

import re
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import Scope

HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
"""A host, perhaps with a port: no user, no path, no space."""
DEFAULT_PORTS = {"http": "80", "https": "443"}
"""Browsers leave them out of the Host and Origin headers."""
PREFIX = re.compile(r"(?:/[A-Za-z0-9_~@:+=-][A-Za-z0-9._~@:+=-]{0,63}){1,8}")
"""Path segments without escapes; none is empty or begins with a dot."""


def set_public_address(scope: Scope, origin: str | None, prefix: str) -> None:
    """Store in the request's state what the functions below read. `origin`: None for the one of the request."""
    state: dict[str, Any] = scope.setdefault("state", {})
    state["public_origin"], state["public_prefix"] = origin, prefix


def public_prefix(scope: Scope) -> str:
    """Such as `/atelier`; empty when paths are not below one."""
    prefix: str = scope.get("state", {}).get("public_prefix", "")
    return prefix


def public_origin(scope: Scope) -> str:
    """Scheme and host of GATEWAY_PUBLIC_URL; empty without one."""
    return scope.get("state", {}).get("public_origin") or ""


def public_path(request: Request, path: str) -> str:
    """A path of this gateway as clients see it."""
    return public_prefix(request.scope) + path


def public_url(request: Request, path: str) -> str:
    """The whole address of a path of this gateway."""
    own_origin = public_origin(request.scope)
    if not own_origin:
        own_origin = str(request.base_url).rstrip("/")  # from the Host header, for the client that has sent it
    return own_origin + public_path(request, path)


def parse_public_url(url: str) -> tuple[str, str]:
    """Origin, without the scheme's own port, and prefix of an http(s) URL without user, query and fragment. Raises ValueError."""
    parts = urlsplit(url.strip())
    plain = parts.scheme in ("http", "https") and HOST.fullmatch(parts.netloc) and not (parts.query or parts.fragment)
    if not plain or parts.port == 0:
        raise ValueError("it must be http(s)://host[:port][/path], without user, query and fragment")
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(f':{DEFAULT_PORTS[parts.scheme]}')}", parse_prefix(parts.path)


def parse_prefix(text: str) -> str:
    """`/atelier` for `/atelier/` and `atelier`; empty for `/`. Raises ValueError."""
    path = text.strip().removeprefix("/").removesuffix("/")
    if not path:
        return ""
    if not PREFIX.fullmatch(f"/{path}"):
        raise ValueError(f"{text[:100]!r} is no plain path such as /atelier: segments have letters, digits and ._~@:+=- only")
    return f"/{path}"
