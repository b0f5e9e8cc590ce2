"""Long pictures and documents inside an itinerary are stored, and its commands carry claims on them: a message is limited to 1 MiB."""

from typing import Any, TypeVar

from fastapi import Request

from gateway.jobs.orders import Itinerary
from gateway.text.uploads import MAX_INLINE_CHARS, store_base64

CLAIM_FIELDS = {"image": "picture", "data": "claim"}
"""The field for a claim by the field for base64: of a consultation, and of a picture or a document of the text step."""

Order = TypeVar("Order")


async def store_inline_files(request: Request, order: Order, tenant: str | None) -> Order:
    """The order with claims of its tenant. Raises HttpProblem(400) for what is not base64, (413, 503), TemporaryError."""
    if not isinstance(order, Itinerary):
        return order
    stops = [
        stop.model_copy(update={"arguments": await _with_claims(request, stop.arguments, tenant)}) if _has_files(stop.arguments) else stop
        for stop in order.stops
    ]
    variables = await _with_claims(request, order.variables, tenant) if _has_files(order.variables) else order.variables
    return order.model_copy(update={"stops": stops, "variables": variables})


def _has_files(value: Any) -> bool:
    """Whether a field for base64 has a long text, at any depth. JSON has at most 200 levels."""
    if isinstance(value, dict):
        return any(_is_file(name, part) or _has_files(part) for name, part in value.items())
    return isinstance(value, list) and any(map(_has_files, value))


def _is_file(name: str, value: Any) -> bool:
    return name in CLAIM_FIELDS and isinstance(value, str) and len(value) > MAX_INLINE_CHARS


async def _with_claims(request: Request, value: Any, tenant: str | None) -> Any:
    if isinstance(value, list):
        return [await _with_claims(request, part, tenant) for part in value]
    if not isinstance(value, dict):
        return value
    fields: dict[str, Any] = {}
    for name, part in value.items():
        if not _is_file(name, part):
            fields[name] = await _with_claims(request, part, tenant)
        elif value.get(CLAIM_FIELDS[name]) is None:
            claim = await store_base64(request, part, tenant)
            fields[CLAIM_FIELDS[name]] = claim.model_dump(mode="json", exclude_none=True)
    return fields
