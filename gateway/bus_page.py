"""The document as one page of HTML without a script: read in any browser, behind the strictest policy."""

import json
from html import escape
from typing import Any

STYLE = """\
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}
code,pre{font:14px/1.45 ui-monospace,monospace;background:#f4f4f2}pre{padding:.8rem;overflow:auto}td,th{text-align:left;vertical-align:top;
padding:.2rem .9rem .2rem 0}section{border-top:1px solid #ccc}summary{cursor:pointer;padding:.3rem 0}h2{margin-top:2.5rem}
@media(prefers-color-scheme:dark){body{color:#eee;background:#181818}code,pre{background:#262626}a{color:#8ab4ff}}"""


def page(document: dict[str, Any]) -> str:
    info = document["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])} on the bus</h1><pre>{escape(info['description'])}</pre>",
        '<p><a href="asyncapi.yaml">The AsyncAPI document</a></p>',
        "<h2>Channels</h2>",
        *(channel(name, told) for name, told in document["channels"].items()),
        "<h2>Messages</h2>",
        *(message(name, told) for name, told in document["components"]["messages"].items()),
        "<h2>Schemas</h2>",
        *(schema(name, told) for name, told in document["components"]["schemas"].items()),
    ]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Atelier on the bus</title><style>{STYLE}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def channel(name: str, told: dict[str, Any]) -> str:
    binding = told.get("bindings", {}).get("amqp", {})
    place = binding.get("exchange", {}).get("name") or binding.get("queue", {}).get("name") or "the queue named in reply_to"
    key = f" under <code>{escape(str(told['address']))}</code>" if binding.get("is") == "routingKey" and told["address"] else ""
    links = ", ".join(link("message", message) for message in told["messages"])
    said = escape(told["description"])
    return f'<section id="channel-{escape(name)}"><h3>{escape(name)}</h3><p>{said} <code>{escape(place)}</code>{key}: {links}</p></section>'


def message(name: str, told: dict[str, Any]) -> str:
    shown = "".join(folded(f"Example: {example.get('name', '')}", example) for example in told.get("examples", []))
    refs = "".join(f"<p>{link('schema', ref)}</p>" for ref in references(told["payload"]))
    title, summary = escape(told.get("title", name)), escape(told.get("summary", ""))
    return f'<section id="message-{escape(name)}"><h3>{title}</h3><p>{summary}</p>{refs}{shown}</section>'


def schema(name: str, told: dict[str, Any]) -> str:
    needed = set(told.get("required", []))
    rows = "".join(row(field, said, needed) for field, said in told.get("properties", {}).items())
    table = f"<table><tr><th>field<th>type<th>meaning</tr>{rows}</table>" if rows else ""
    said = escape(told.get("description", ""))
    return f'<section id="schema-{escape(name)}"><h3>{escape(name)}</h3><p>{said}</p>{table}{folded("JSON Schema", told)}</section>'


def row(field: str, said: dict[str, Any], needed: set[str]) -> str:
    kinds = " or ".join(link("schema", ref) for ref in references(said)) or escape(kind(said))
    star = " (required)" if field in needed else ""
    return f"<tr><td><code>{escape(field)}</code>{star}<td>{kinds}<td>{escape(said.get('description', ''))}</tr>"


def kind(said: dict[str, Any]) -> str:
    options = [str(option.get("type", "any")) for option in said.get("anyOf", [])]
    return " or ".join(options) or str(said.get("type", "any"))


def references(said: Any) -> list[str]:
    """The names of the schemas that it points to."""
    if isinstance(said, list):
        return [name for part in said for name in references(part)]
    if not isinstance(said, dict):
        return []
    own = [said["$ref"].rpartition("/")[2]] if isinstance(said.get("$ref"), str) else []
    return list(dict.fromkeys([*own, *(name for part in said.values() for name in references(part))]))


def link(sort: str, name: str) -> str:
    return f'<a href="#{sort}-{escape(name)}">{escape(name)}</a>'


def folded(title: str, told: Any) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(json.dumps(told, indent=2, ensure_ascii=False))}</pre></details>"
