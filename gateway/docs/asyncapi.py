"""`/asyncapi.yaml`: the AsyncAPI document of the bus; `/asyncapi`: the same as a static page."""

import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse

from gateway.middleware.public_url import public_path

ASYNCAPI_PATH = Path(__file__).parent / "asyncapi.yaml"
DOCUMENT_LINK = 'href="asyncapi.yaml"'
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

router = APIRouter(tags=["documents"])


@router.get("/asyncapi", response_class=HTMLResponse, operation_id="to_read_asyncapi_get", summary="To Read")
async def asyncapi_page(request: Request) -> HTMLResponse:
    """The messages of the bus, as a page."""
    page = await to_thread.run_sync(asyncapi_html)
    return HTMLResponse(page.replace(DOCUMENT_LINK, f'href="{public_path(request, "/asyncapi.yaml")}"'), headers=PAGE_HEADERS)


@router.get("/asyncapi.yaml", response_class=FileResponse, operation_id="for_generators_asyncapi_yaml_get", summary="For Generators")
async def asyncapi_document() -> FileResponse:
    """The messages of the bus, as an AsyncAPI document."""
    return FileResponse(ASYNCAPI_PATH, media_type="application/yaml")


@cache
def asyncapi_html() -> str:
    import yaml  # here, so that a gateway starts without it

    return render_document(yaml.load(ASYNCAPI_PATH.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))  # noqa: S506


STYLE = """\
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}
code,pre{font:14px/1.45 ui-monospace,monospace;background:#f4f4f2}pre{padding:.8rem;overflow:auto}td,th{text-align:left;vertical-align:top;
padding:.2rem .9rem .2rem 0}section{border-top:1px solid #ccc}summary{cursor:pointer;padding:.3rem 0}h2{margin-top:2.5rem}
@media(prefers-color-scheme:dark){body{color:#eee;background:#181818}code,pre{background:#262626}a{color:#8ab4ff}}"""


def render_document(document: dict[str, Any]) -> str:
    info = document["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])} on the bus</h1><pre>{escape(info['description'])}</pre>",
        '<p><a href="asyncapi.yaml">The AsyncAPI document</a></p>',
        "<h2>Channels</h2>",
        *(render_channel(name, channel) for name, channel in document["channels"].items()),
        "<h2>Messages</h2>",
        *(render_message(name, message) for name, message in document["components"]["messages"].items()),
        "<h2>Schemas</h2>",
        *(render_schema(name, schema) for name, schema in document["components"]["schemas"].items()),
    ]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Atelier on the bus</title><style>{STYLE}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def render_channel(name: str, definition: dict[str, Any]) -> str:
    binding = definition.get("bindings", {}).get("amqp", {})
    target = binding.get("exchange", {}).get("name") or binding.get("queue", {}).get("name") or "the queue that reply_to names"
    address = definition["address"] if binding.get("is") == "routingKey" else None
    routing_key = f" with the routing key <code>{escape(str(address))}</code>" if address else ""
    links = ", ".join(anchor_link("message", message) for message in definition["messages"])
    text = f"{escape(definition['description'])} <code>{escape(target)}</code>{routing_key}: {links}"
    return f'<section id="channel-{escape(name)}"><h3>{escape(name)}</h3><p>{text}</p></section>'


def render_message(name: str, definition: dict[str, Any]) -> str:
    examples = "".join(details_block(f"Example: {example.get('name', '')}", example) for example in definition.get("examples", []))
    refs = "".join(f"<p>{anchor_link('schema', ref)}</p>" for ref in schema_references(definition["payload"]))
    title, summary = escape(definition.get("title", name)), escape(definition.get("summary", ""))
    return f'<section id="message-{escape(name)}"><h3>{title}</h3><p>{summary}</p>{refs}{examples}</section>'


def render_schema(name: str, definition: dict[str, Any]) -> str:
    required = set(definition.get("required", []))
    rows = "".join(render_field(field, schema, field in required) for field, schema in definition.get("properties", {}).items())
    table = f"<table><tr><th>field<th>type<th>description</tr>{rows}</table>" if rows else ""
    text = f"<p>{escape(definition.get('description', ''))}</p>{table}{details_block('JSON Schema', definition)}"
    return f'<section id="schema-{escape(name)}"><h3>{escape(name)}</h3>{text}</section>'


def render_field(field: str, definition: dict[str, Any], required: bool) -> str:
    types = " or ".join(anchor_link("schema", ref) for ref in schema_references(definition)) or escape(type_names(definition))
    mark = " (required)" if required else ""
    return f"<tr><td><code>{escape(field)}</code>{mark}<td>{types}<td>{escape(definition.get('description', ''))}</tr>"


def type_names(definition: dict[str, Any]) -> str:
    options = [str(option.get("type", "any")) for option in definition.get("anyOf", [])]
    return " or ".join(options) or str(definition.get("type", "any"))


def schema_references(node: Any) -> list[str]:
    """The names of the schemas that `node` references, at any depth."""
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
