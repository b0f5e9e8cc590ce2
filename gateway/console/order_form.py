"""Convert the fields of the page Make to an order and back, and assign validation errors to fields."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway.console.guard import SubmittedForm
from gateway.jobs.orders import JobOrder

ORDER_ADAPTER: TypeAdapter[Any] = TypeAdapter(JobOrder)
IMAGE_FIELDS = ("prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "scheduler", "seed", "count", "model", "artist")
AD_FIELDS = ("text", "tries")
FORM_FIELDS = (*IMAGE_FIELDS, *AD_FIELDS, "lora_uri", "lora_scale")
ORDER_KINDS = ("image_order", "ad")
DEFAULTS = {"kind": "image_order", "width": "512", "height": "512", "steps": "30", "guidance_scale": "7.5", "count": "1", "tries": "2"}
SCHEDULERS = ("dpm++", "euler", "euler-a", "ddim", "pndm", "lms", "unipc")


def order_from_form(form: SubmittedForm) -> Any:
    """An ImageOrder or an Ad, signed with the artist's name. Blank fields are left out. Raises ValidationError."""
    kind = form.get("kind", "image_order")
    order: dict[str, Any] = {"kind": kind} | form.non_blank(*IMAGE_FIELDS, *(AD_FIELDS if kind == "ad" else ()))
    if kind == "ad":
        order.pop("count", None)
    if lora := form.non_blank("lora_uri", "lora_scale"):
        order["lora"] = {name.removeprefix("lora_"): value for name, value in lora.items() if "lora_uri" in lora}
    if "artist" in order:
        order["signature"] = {"text": order["artist"]}
    if form.get("preview"):
        order["preview"] = True
    return ORDER_ADAPTER.validate_python(order)


def form_from_order(order: Mapping[str, Any] | None) -> dict[str, str]:
    """The form values of an order, completed with defaults; only defaults for no order or one of another kind."""
    if order is None or order.get("kind") not in ORDER_KINDS:
        return dict(DEFAULTS)
    values = {name: str(order[name]) for name in ("kind", *IMAGE_FIELDS, *AD_FIELDS) if order.get(name) is not None}
    lora = order.get("lora") or {}
    values |= {f"lora_{name}": str(lora[name]) for name in ("uri", "scale") if lora.get(name) is not None}
    if order.get("preview"):
        values["preview"] = "on"
    return DEFAULTS | values


def field_errors(error: ValidationError) -> dict[str, str]:
    """The first message by form field; errors that belong to no field of the form are under the empty name."""
    messages: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        location = [str(part) for part in detail["loc"][1:]]
        name = "_".join(location[:2]) if location[:1] == ["lora"] and len(location) > 1 else (location[0] if location else "")
        name = "artist" if name == "signature" else name
        messages.setdefault(name if name in FORM_FIELDS else "", detail["msg"])
    return messages
