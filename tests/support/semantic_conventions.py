"""What OpenTelemetry's semantic conventions say of our spans: names and values from `opentelemetry-semantic-conventions`, and the
required attributes of each kind of span, which the package does not have, from the published documents.
"""

import importlib
import pkgutil
from enum import Enum
from typing import Any

from opentelemetry.semconv import attributes as stable
from opentelemetry.semconv._incubating import attributes as incubating

from tests.support.otlp_collector import RecordedSpan

OWN_PREFIX = "atelier."
OWN_PROVIDERS = frozenset({"atelier", "vllm"})
REMOVED = frozenset({"gen_ai.system", "gen_ai.prompt", "gen_ai.completion", "gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens"})
"""In the package for old code; those of the conventions for generative AI that moved to a repository of their own are current."""
CONTENT = ("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.tool.definitions")

RABBITMQ = {
    "messaging.system", "messaging.operation.name", "messaging.operation.type", "messaging.destination.name",
    "messaging.rabbitmq.destination.routing_key", "server.address", "server.port",
}  # fmt: skip
REQUIRED = {
    "send": RABBITMQ,
    "process": RABBITMQ | {"messaging.message.id", "messaging.message.conversation_id", "messaging.rabbitmq.message.delivery_tag"},
    "http": {"http.request.method", "url.path", "url.scheme", "http.route", "http.response.status_code"},
    "gen_ai": {"gen_ai.operation.name", "gen_ai.provider.name"},
}
"""Required, and required where they are available, which they are here."""
KINDS = {"send": "CLIENT", "process": "CONSUMER", "http": "SERVER", "gen_ai": "CLIENT"}
VALUES = {
    "messaging.system": "MessagingSystemValues", "messaging.operation.type": "MessagingOperationTypeValues",
    "http.request.method": "HttpRequestMethodValues", "gen_ai.operation.name": "GenAiOperationNameValues",
    "gen_ai.output.type": "GenAiOutputTypeValues", "gen_ai.provider.name": "GenAiProviderNameValues",
}  # fmt: skip
"""The enumeration of an attribute's values."""


def registry() -> tuple[set[str], dict[str, set[Any]]]:
    """The names of all attributes, and the values of each enumeration by its class."""
    names, values = set[str](), dict[str, set[Any]]()
    for package in (stable, incubating):
        for module in pkgutil.iter_modules(package.__path__):
            content = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
            names |= {value for name, value in content.items() if name.isupper() and isinstance(value, str)}
            enums = {name: value for name, value in content.items() if isinstance(value, type) and issubclass(value, Enum)}
            values |= {name: {member.value for member in enum} for name, enum in enums.items()}
    return names, values


def kind_of(span: RecordedSpan) -> str | None:
    """The convention that a span follows; None: it is ours, such as the wait in a queue."""
    if "gen_ai.operation.name" in span.attributes:
        return "gen_ai"
    if "http.request.method" in span.attributes:
        return "http"
    return span.attributes.get("messaging.operation.type")


def find_violations(span: RecordedSpan) -> list[str]:
    """Unknown and removed names, values outside of their enumeration, missing attributes, another kind or name of the span."""
    names, enums = registry()
    attributes, convention = span.attributes, kind_of(span)
    found = [f"unknown: {name}" for name in attributes if name not in names - REMOVED and not name.startswith(OWN_PREFIX)]
    found += [f"content: {name}" for name in CONTENT if name in attributes]
    for name, enum in VALUES.items():
        allowed = enums[enum] | (OWN_PROVIDERS if name == "gen_ai.provider.name" else set())
        if name in attributes and attributes[name] not in allowed:
            found.append(f"value: {name}={attributes[name]}")
    if convention:
        found += [f"missing: {name}" for name in sorted(REQUIRED[convention] - attributes.keys())]
        found += [f"kind: {span.kind}"] * (span.kind != KINDS[convention])
        found += [f"name: {span.name}"] * (span.name != expected_name(span, convention))
        found += ["missing: error.type"] * (span.failed and "error.type" not in attributes)
    return found


def expected_name(span: RecordedSpan, convention: str) -> str:
    """`{operation} {target}`, where the target has few values."""
    values = span.attributes
    if convention == "http":
        method = values["http.request.method"]
        return f"{'HTTP' if method == '_OTHER' else method} {values['http.route']}"
    if convention == "gen_ai":
        return " ".join(values[name] for name in ("gen_ai.operation.name", "gen_ai.request.model") if name in values)
    destination = values.get("messaging.destination.template") or values.get("messaging.destination.name")
    return f"{values.get('messaging.operation.name')} {destination}"
