"""The Make form: from its fields to an order, from an order that was given back to its fields, and what is wrong with which field."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway.console.guard import SubmittedForm
from gateway.jobs.orders import JobOrder

ORDER_ADAPTER: TypeAdapter[Any] = TypeAdapter(JobOrder)
IMAGE_FIELDS = ("prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "scheduler", "seed", "count", "model", "artist")
AD_FIELDS = ("text", "tries")
ORDER_KINDS = ("image_order", "ad")
DEFAULTS = {"kind": "image_order", "width": "512", "height": "512", "steps": "30", "guidance_scale": "7.5", "count": "1", "tries": "2"}
SCHEDULERS = ("dpm++", "euler", "euler-a", "ddim", "pndm", "lms", "unipc")


def order_from_form(form: SubmittedForm) -> Any:
    """Raises ValidationError."""
    kind = form.get("kind", "image_order")
    body: dict[str, Any] = {"kind": kind} | form.non_blank(*IMAGE_FIELDS, *(AD_FIELDS if kind == "ad" else ()))
    if kind == "ad":
        body.pop("count", None)
    if lora := form.non_blank("lora_uri", "lora_scale"):
        body["lora"] = {name.removeprefix("lora_"): value for name, value in lora.items() if "lora_uri" in lora}
    if form.get("preview"):
        body["preview"] = True
    return ORDER_ADAPTER.validate_python(body)


def form_from_order(order: Mapping[str, Any] | None) -> dict[str, str]:
    """What the form shows of an order; the usual where there is none."""
    if order is None or order.get("kind") not in ORDER_KINDS:
        return dict(DEFAULTS)
    shown = {name: str(order[name]) for name in ("kind", *IMAGE_FIELDS, *AD_FIELDS) if order.get(name) is not None}
    lora = order.get("lora") or {}
    shown |= {f"lora_{name}": str(lora[name]) for name in ("uri", "scale") if lora.get(name) is not None}
    if order.get("preview"):
        shown["preview"] = "on"
    return DEFAULTS | shown


def field_errors(error: ValidationError) -> dict[str, str]:
    """Field to what is wrong with it; what concerns no field that is shown stands under the empty name."""
    found: dict[str, str] = {}
    for part in error.errors(include_url=False):
        place = [str(word) for word in part["loc"][1:]]
        name = "_".join(place[:2]) if place[:1] == ["lora"] and len(place) > 1 else (place[0] if place else "")
        found.setdefault(name if name in (*IMAGE_FIELDS, *AD_FIELDS, "lora_uri", "lora_scale") else "", f"{part['msg']}")
    return found
