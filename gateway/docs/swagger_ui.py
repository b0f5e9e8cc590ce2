"""`/docs`: Swagger UI for the OpenAPI document. It loads nothing from another host: its files are in the package `fastapi-swagger`."""

from functools import cache
from importlib.resources import files

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from gateway.middleware.public_url import public_prefix

START_CODE = """// Without `validatorUrl: null`, Swagger UI would send its address to another host.
SwaggerUIBundle({ url: "PREFIX/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, tryItOutEnabled: true });
"""
DOCS_PATH = "/docs"
SCRIPT, STYLE, START_SCRIPT = "swagger-ui-bundle.js", "swagger-ui.css", "start.js"
ASSET_PATHS = frozenset({f"{DOCS_PATH}/{name}" for name in (SCRIPT, STYLE, START_SCRIPT)})
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
}
"""Swagger UI sets style attributes."""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Atelier over HTTP</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="PREFIX/docs/swagger-ui.css"></head>
<body><div id="swagger-ui"></div><noscript><a href="PREFIX/openapi.json">The OpenAPI document</a></noscript>
<script src="PREFIX/docs/swagger-ui-bundle.js"></script><script src="PREFIX/docs/start.js"></script></body></html>
"""
"""PREFIX is the public one: letters, digits and a few marks, none of which needs an escape."""

router = APIRouter(include_in_schema=False)


@router.get(DOCS_PATH)
async def docs_page(request: Request) -> HTMLResponse:
    return HTMLResponse(PAGE.replace("PREFIX", public_prefix(request.scope)), headers=PAGE_HEADERS)


@router.get("/redoc")
async def redirect_to_docs() -> RedirectResponse:
    """The address of a page that was removed."""
    return RedirectResponse(DOCS_PATH, 308)


@router.get(f"{DOCS_PATH}/{SCRIPT}")
async def script() -> Response:
    return await asset(SCRIPT, "text/javascript")


@router.get(f"{DOCS_PATH}/{STYLE}")
async def style() -> Response:
    return await asset(STYLE, "text/css")


@router.get(f"{DOCS_PATH}/{START_SCRIPT}")
async def start_script(request: Request) -> Response:
    return asset_response(START_CODE.replace("PREFIX", public_prefix(request.scope)).encode(), "text/javascript")


async def asset(name: str, media_type: str) -> Response:
    return asset_response(await to_thread.run_sync(read_asset, name), media_type)


def asset_response(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"Cache-Control": "public, max-age=86400"})


@cache
def read_asset(name: str) -> bytes:
    return (files("fastapi_swagger") / "resources" / name).read_bytes()
