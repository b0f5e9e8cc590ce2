"""The Make form: from its fields to an order, from an order that was given back to its fields, and what is wrong with which field."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway.console.counter import Form
from gateway.orders import JobOrder

ORDERS: TypeAdapter[Any] = TypeAdapter(JobOrder)
PLAIN = ("prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "scheduler", "seed", "count", "model", "artist")
AD = ("text", "tries")
KINDS = ("image_order", "ad")
USUAL = {"kind": "image_order", "width": "512", "height": "512", "steps": "30", "guidance_scale": "7.5", "count": "1", "tries": "2"}
SCHEDULERS = ("dpm++", "euler", "euler-a", "ddim", "pndm", "lms", "unipc")


def order_of(form: Form) -> Any:
    """Raises ValidationError."""
    kind = form.get("kind", "image_order")
    body: dict[str, Any] = {"kind": kind} | form.said(*PLAIN, *(AD if kind == "ad" else ()))
    if kind == "ad":
        body.pop("count", None)
    if lora := form.said("lora_uri", "lora_scale"):
        body["lora"] = {name.removeprefix("lora_"): value for name, value in lora.items() if "lora_uri" in lora}
    if form.get("preview"):
        body["preview"] = True
    return ORDERS.validate_python(body)


def fields_of(order: Mapping[str, Any] | None) -> dict[str, str]:
    """What the form shows of an order; the usual where there is none."""
    if order is None or order.get("kind") not in KINDS:
        return dict(USUAL)
    shown = {name: str(order[name]) for name in ("kind", *PLAIN, *AD) if order.get(name) is not None}
    lora = order.get("lora") or {}
    shown |= {f"lora_{name}": str(lora[name]) for name in ("uri", "scale") if lora.get(name) is not None}
    if order.get("preview"):
        shown["preview"] = "on"
    return USUAL | shown


def wrong_fields(error: ValidationError) -> dict[str, str]:
    """Field to what is wrong with it; what concerns no field that is shown stands under the empty name."""
    found: dict[str, str] = {}
    for part in error.errors(include_url=False):
        place = [str(word) for word in part["loc"][1:]]
        name = "_".join(place[:2]) if place[:1] == ["lora"] and len(place) > 1 else (place[0] if place else "")
        found.setdefault(name if name in (*PLAIN, *AD, "lora_uri", "lora_scale") else "", f"{part['msg']}")
    return found
