"""`/asyncapi`: what may be said on the bus, as a page, and `/asyncapi.yaml`, the document itself. Nothing can be tried out here."""

from functools import cache
from pathlib import Path

import yaml
from anyio import to_thread
from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse

from gateway.bus_page import page

DOCUMENT = Path(__file__).parent / "asyncapi.yaml"
POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}

router = APIRouter(tags=["documents"])


@cache
def drawn() -> str:
    return page(yaml.load(DOCUMENT.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))  # noqa: S506


@router.get("/asyncapi", response_class=HTMLResponse)
async def to_read() -> HTMLResponse:
    """The messages of the bus, to be read."""
    return HTMLResponse(await to_thread.run_sync(drawn), headers=POLICY)


@router.get("/asyncapi.yaml", response_class=FileResponse)
async def for_generators() -> FileResponse:
    """The messages of the bus, for a generator."""
    return FileResponse(DOCUMENT, media_type="application/yaml")
