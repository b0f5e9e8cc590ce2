"""Files in the arguments of a step are stored, and its command carries claims on them: a message is limited to 1 MiB.

Pictures for the image step always, and what is long for the steps whose commands may contain a file.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel

from contracts.wire import Step
from gateway.jobs.image_fields import PICTURES
from gateway.jobs.orders import Itinerary
from gateway.problems import HttpProblem
from gateway.text.uploads import MAX_INLINE_CHARS, store_base64

Order = TypeVar("Order", bound=BaseModel)


@dataclass(frozen=True)
class FileField:
    """The field for base64, and that for a claim. `arguments`: those in which they occur, at any depth; empty: they are arguments."""

    base64: str
    claim: str
    arguments: tuple[str, ...] = ()


FILE_FIELDS = {Step.CONSULT: FileField("image", "picture"), Step.TEXT: FileField("data", "claim", ("pictures", "documents", "messages"))}


async def store_inline_files(request: Request, order: Order, tenant: str | None) -> Order:
    """The order with claims of its tenant. A variable is treated as the argument of a step that takes it; others stay as they are.

    Raises HttpProblem(400) for what is not base64, (422) for a file that is given twice, (413, 503), TemporaryError.
    """
    if not isinstance(order, Itinerary):
        return await _order_with_pictures(request, order, tenant)
    stops, variables = [], order.variables
    for stop in order.stops:
        file = FILE_FIELDS.get(Step(stop.step))
        if file:
            stop = stop.model_copy(update={"arguments": await _in_arguments(request, stop.arguments, file, tenant)})
            variables = await _in_arguments(request, variables, file, tenant)
        elif Step(stop.step) == Step.IMAGE:
            stop = stop.model_copy(update={"arguments": await _with_pictures(request, stop.arguments, tenant)})
            variables = await _with_pictures(request, variables, tenant)
        stops.append(stop)
    return order.model_copy(update={"stops": stops, "variables": variables})


async def _order_with_pictures(request: Request, order: Order, tenant: str | None) -> Order:
    fields = order.model_dump(mode="json", exclude_unset=True)
    stored = await _with_pictures(request, fields, tenant)
    return order if stored is fields else type(order).model_validate(stored)


async def _with_pictures(request: Request, arguments: dict[str, Any], tenant: str | None) -> dict[str, Any]:
    """The arguments with a claim of the tenant in place of each picture that they contain.

    Raises HttpProblem(400) for what is not base64, (413, 503), TemporaryError.
    """
    for argument, names in PICTURES.items():
        source = arguments.get(argument)
        if not isinstance(source, dict):
            continue
        texts = {name: source[name] for name in names if isinstance(source.get(name), str)}
        claims = {name: await store_base64(request, text, tenant) for name, text in texts.items()}
        if claims:
            stored = {name: claim.model_dump(mode="json", exclude_none=True) for name, claim in claims.items()}
            arguments = arguments | {argument: source | stored}
    return arguments


async def _in_arguments(request: Request, arguments: dict[str, Any], file: FileField, tenant: str | None) -> dict[str, Any]:
    if not file.arguments:
        return await _with_claim(request, arguments, file, tenant)
    return {
        name: await _with_claims(request, value, file, tenant) if name in file.arguments else value for name, value in arguments.items()
    }


async def _with_claims(request: Request, value: Any, file: FileField, tenant: str | None) -> Any:
    """JSON has at most 200 levels."""
    if isinstance(value, list):
        return [await _with_claims(request, part, file, tenant) for part in value]
    if not isinstance(value, dict):
        return value
    fields = await _with_claim(request, value, file, tenant)
    return {name: await _with_claims(request, part, file, tenant) for name, part in fields.items()}


async def _with_claim(request: Request, fields: dict[str, Any], file: FileField, tenant: str | None) -> dict[str, Any]:
    text = fields.get(file.base64)
    if text is not None and fields.get(file.claim) is not None:
        raise HttpProblem(
            422, "file-ambiguous", f"{file.base64!r} and {file.claim!r} are both given: a step takes one file, as one of them"
        )
    if not isinstance(text, str) or len(text) <= MAX_INLINE_CHARS:
        return fields
    claim = await store_base64(request, text, tenant)
    others = {name: value for name, value in fields.items() if name != file.base64}
    return others | {file.claim: claim.model_dump(mode="json", exclude_none=True)}
