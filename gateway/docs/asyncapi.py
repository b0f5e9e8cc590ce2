"""`/asyncapi`: what may be said on the bus, as a page, and `/asyncapi.yaml`, the document itself. Nothing can be tried out here."""

import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import yaml
from anyio import to_thread
from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse

ASYNCAPI_PATH = Path(__file__).parent / "asyncapi.yaml"


PAGE_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


router = APIRouter(tags=["documents"])


@cache
def asyncapi_html() -> str:
    return render_page(yaml.load(ASYNCAPI_PATH.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))  # noqa: S506


@router.get("/asyncapi", response_class=HTMLResponse)
async def to_read() -> HTMLResponse:
    """The messages of the bus, to be read."""
    return HTMLResponse(await to_thread.run_sync(asyncapi_html), headers=PAGE_HEADERS)


@router.get("/asyncapi.yaml", response_class=FileResponse)
async def for_generators() -> FileResponse:
    """The messages of the bus, for a generator."""
    return FileResponse(ASYNCAPI_PATH, media_type="application/yaml")


STYLE = """\
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}
code,pre{font:14px/1.45 ui-monospace,monospace;background:#f4f4f2}pre{padding:.8rem;overflow:auto}td,th{text-align:left;vertical-align:top;
padding:.2rem .9rem .2rem 0}section{border-top:1px solid #ccc}summary{cursor:pointer;padding:.3rem 0}h2{margin-top:2.5rem}
@media(prefers-color-scheme:dark){body{color:#eee;background:#181818}code,pre{background:#262626}a{color:#8ab4ff}}"""


def render_page(document: dict[str, Any]) -> str:
    info = document["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])} on the bus</h1><pre>{escape(info['description'])}</pre>",
        '<p><a href="asyncapi.yaml">The AsyncAPI document</a></p>',
        "<h2>Channels</h2>",
        *(render_channel(name, told) for name, told in document["channels"].items()),
        "<h2>Messages</h2>",
        *(render_message(name, told) for name, told in document["components"]["messages"].items()),
        "<h2>Schemas</h2>",
        *(render_schema(name, told) for name, told in document["components"]["schemas"].items()),
    ]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Atelier on the bus</title><style>{STYLE}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def render_channel(name: str, definition: dict[str, Any]) -> str:
    binding = definition.get("bindings", {}).get("amqp", {})
    place = binding.get("exchange", {}).get("name") or binding.get("queue", {}).get("name") or "the queue named in reply_to"
    key = f" under <code>{escape(str(definition['address']))}</code>" if binding.get("is") == "routingKey" and definition["address"] else ""
    links = ", ".join(anchor_link("message", message) for message in definition["messages"])
    said = escape(definition["description"])
    return f'<section id="channel-{escape(name)}"><h3>{escape(name)}</h3><p>{said} <code>{escape(place)}</code>{key}: {links}</p></section>'


def render_message(name: str, definition: dict[str, Any]) -> str:
    shown = "".join(details_block(f"Example: {example.get('name', '')}", example) for example in definition.get("examples", []))
    refs = "".join(f"<p>{anchor_link('schema', ref)}</p>" for ref in schema_references(definition["payload"]))
    title, summary = escape(definition.get("title", name)), escape(definition.get("summary", ""))
    return f'<section id="message-{escape(name)}"><h3>{title}</h3><p>{summary}</p>{refs}{shown}</section>'


def render_schema(name: str, definition: dict[str, Any]) -> str:
    needed = set(definition.get("required", []))
    rows = "".join(render_field(field, said, needed) for field, said in definition.get("properties", {}).items())
    table = f"<table><tr><th>field<th>type<th>meaning</tr>{rows}</table>" if rows else ""
    said = escape(definition.get("description", ""))
    return f'<section id="schema-{escape(name)}"><h3>{escape(name)}</h3><p>{said}</p>{table}{details_block("JSON Schema", definition)}</section>'


def render_field(field: str, definition: dict[str, Any], needed: set[str]) -> str:
    kinds = " or ".join(anchor_link("schema", ref) for ref in schema_references(definition)) or escape(type_names(definition))
    star = " (required)" if field in needed else ""
    return f"<tr><td><code>{escape(field)}</code>{star}<td>{kinds}<td>{escape(definition.get('description', ''))}</tr>"


def type_names(definition: dict[str, Any]) -> str:
    options = [str(option.get("type", "any")) for option in definition.get("anyOf", [])]
    return " or ".join(options) or str(definition.get("type", "any"))


def schema_references(node: Any) -> list[str]:
    """The names of the schemas that it points to."""
    if isinstance(node, list):
        return [name for part in node for name in schema_references(part)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"].rpartition("/")[2]] if isinstance(node.get("$ref"), str) else []
    return list(dict.fromkeys([*own, *(name for part in node.values() for name in schema_references(part))]))


def anchor_link(section: str, name: str) -> str:
    return f'<a href="#{section}-{escape(name)}">{escape(name)}</a>'


def details_block(title: str, content: Any) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(json.dumps(content, indent=2, ensure_ascii=False))}</pre></details>"
