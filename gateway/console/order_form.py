"""Convert the fields of the page Make to an order and back, and assign validation errors to fields."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from pydantic import ConfigDict, TypeAdapter, ValidationError

from contracts.claim import Claim
from contracts.image import MAX_LORAS
from gateway.console.form_body import SubmittedForm
from gateway.jobs.files import ORDER_PICTURES, order_pictures
from gateway.jobs.orders import JobOrder

ORDER_ADAPTER: TypeAdapter[Any] = TypeAdapter(JobOrder, config=ConfigDict(defer_build=True))
IMAGE_FIELDS = (
    *("prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "true_cfg_scale", "scheduler", "seed", "count", "model"),
    *("output_format", "quality", "artist"),
)
AD_FIELDS = ("text", "tries")
FURTHER_FIELDS = ("artist", "lora_uri", "lora_scale", "model", "guidance_scale", "true_cfg_scale", "scheduler", "output_format", "quality")
"""Those of the section More."""
PICTURE_FIELDS = ("source", "mask", "control")
"""Each is a file; in a field `…_ref` it is a picture of a job, as `find_picture` reads it. A file comes before the picture of a job."""
PICTURE_VALUES = ("strength", "control_model", "control_scale")
LORA_ROWS = range(MAX_LORAS)
FORM_FIELDS = (*IMAGE_FIELDS, *AD_FIELDS, *PICTURE_VALUES, "lora_uri", "lora_scale", *(f"lora_{row}" for row in LORA_ROWS))
KEPT_LORA_VALUES = ("sha256", "alpha", "required")
"""They have no input. An order that is submitted again keeps them in hidden fields, with the LoRA in `…_of` that they belong to."""
KEPT_FIELDS = tuple(f"{prefix}_{name}" for prefix in ("lora", *(f"lora_{row}" for row in LORA_ROWS)) for name in ("of", *KEPT_LORA_VALUES))
ORDER_KINDS = ("image_order", "ad")
DEFAULTS = {"kind": "image_order", "count": "1", "tries": "2"}
"""What is not named here is left to the model."""
SCHEDULERS = ("dpm++", "euler", "euler-a", "ddim", "pndm", "lms", "unipc")
OUTPUT_FORMATS = ("png", "jpeg", "webp")
NO_PICTURES: Mapping[str, Claim] = MappingProxyType({})
NOT_STORED = Claim(uri="file:///not-stored", sha256="0" * 64, media_type="image/png", size=0)
"""Stands for a picture of the form while the order is checked, before the picture is stored."""


def order_from_form(form: SubmittedForm, pictures: Mapping[str, Claim] = NO_PICTURES) -> Any:
    """An ImageOrder or an Ad, signed with the artist's name. Blank fields are left out. Raises ValidationError.

    `pictures`: the claims of the form's pictures by field.
    """
    kind = form.get("kind", "image_order")
    order: dict[str, Any] = {"kind": kind} | form.non_blank(*IMAGE_FIELDS, *(AD_FIELDS if kind == "ad" else ()))
    if kind == "ad":
        order.pop("count", None)
    if lora := form.non_blank("lora_uri", "lora_scale"):
        order["lora"] = {name.removeprefix("lora_"): value for name, value in lora.items()} | kept_values(
            form, "lora", lora.get("lora_uri")
        )
    if loras := [lora for _, lora in lora_rows(form)]:
        order["loras"] = loras
    if "artist" in order:
        order["signature"] = {"text": order["artist"]}
    if form.get("preview"):
        order["preview"] = True
    return ORDER_ADAPTER.validate_python(order | picture_arguments(form, pictures))


def lora_rows(form: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The number of each row that is filled in, and its LoRA: an address, which has a scheme, or a name."""
    for row in LORA_ROWS:
        chosen, scale = form.get(f"lora_{row}", "").strip(), form.get(f"lora_{row}_scale", "").strip()
        if chosen or scale:
            source = {"uri" if "://" in chosen else "name": chosen} if chosen else {}
            yield row, source | ({"scale": scale} if scale else {}) | kept_values(form, f"lora_{row}", chosen)


def kept_values(form: Mapping[str, str], prefix: str, chosen: str | None) -> dict[str, str]:
    """The LoRA's values in hidden fields, which the order before had; none when another LoRA has been chosen."""
    if not chosen or form.get(f"{prefix}_of", "") != chosen:
        return {}
    return {name: form[f"{prefix}_{name}"] for name in KEPT_LORA_VALUES if form.get(f"{prefix}_{name}")}


def lora_fields(lora: Mapping[str, Any], field: str, prefix: str) -> dict[str, str]:
    """The form fields of a LoRA of an order; `field` is that of its name or address."""
    chosen = str(lora.get("name") or lora.get("uri") or "")
    kept = {f"{prefix}_{name}": str(lora[name]) for name in KEPT_LORA_VALUES if lora.get(name) is not None}
    scale = {f"{prefix}_scale": str(lora["scale"])} if lora.get("scale") is not None else {}
    return {field: chosen} | scale | (kept | {f"{prefix}_of": chosen} if kept else {})


def picture_arguments(form: SubmittedForm, pictures: Mapping[str, Claim]) -> dict[str, Any]:
    """`edit` and `control`, as far as their pictures are there."""
    claims = {name: claim.model_dump(mode="json", exclude_none=True) for name, claim in pictures.items()}
    arguments: dict[str, Any] = {}
    if "source" in claims:
        mask = {"mask": claims["mask"]} if "mask" in claims else {}
        arguments["edit"] = {"image": claims["source"]} | mask | form.non_blank("strength")
    if "control" in claims:
        values = {name.removeprefix("control_"): value for name, value in form.non_blank("control_model", "control_scale").items()}
        arguments["control"] = {"image": claims["control"]} | values
    return arguments


def form_from_order(order: Mapping[str, Any] | None, job_id: str = "") -> dict[str, str]:
    """The form values of a job's order, completed with defaults; only defaults for no order or one of another kind."""
    if order is None or order.get("kind") not in ORDER_KINDS:
        return dict(DEFAULTS)
    values = {name: str(order[name]) for name in ("kind", *IMAGE_FIELDS, *AD_FIELDS) if order.get(name) is not None}
    loras = [*([order["lora"]] if order.get("lora") else []), *(order.get("loras") or [])]
    if loras and loras[0].get("uri"):
        values |= lora_fields(loras.pop(0), "lora_uri", "lora")
    for row, lora in zip(LORA_ROWS, loras, strict=False):
        values |= lora_fields(lora, f"lora_{row}", f"lora_{row}")
    if order.get("preview"):
        values["preview"] = "on"
    return DEFAULTS | values | _picture_values(order, job_id)


def _picture_values(order: Mapping[str, Any], job_id: str) -> dict[str, str]:
    edit, control, present = order.get("edit") or {}, order.get("control") or {}, order_pictures(order)
    places = zip(PICTURE_FIELDS, ORDER_PICTURES, strict=True)
    values = {f"{field}_ref": f"{job_id}/{place}" for field, place in places if place in present}
    further = {"strength": edit.get("strength"), "control_model": control.get("model"), "control_scale": control.get("scale")}
    return values | {name: str(value) for name, value in further.items() if value is not None}


def picture_links(fields: Mapping[str, str], jobs_path: str) -> dict[str, str]:
    """Where the browser finds the pictures of jobs that the form names, by field."""
    references = {field: fields.get(f"{field}_ref", "").rpartition("/") for field in PICTURE_FIELDS}
    return {
        field: f"{jobs_path}/{quote(job_id, safe='')}/files/{quote(name, safe='')}"
        for field, (job_id, _, name) in references.items()
        if job_id and name
    }


def field_errors(error: ValidationError, form: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The first message by form field; errors that belong to no field of the form are under the empty name."""
    rows, messages = [row for row, _ in lora_rows(form)], dict[str, str]()
    for detail in error.errors(include_url=False):
        name = _field_of(list(detail["loc"][1:]), rows)
        messages.setdefault(name if name in FORM_FIELDS else "", detail["msg"])
    return messages


def _field_of(location: list[int | str], rows: list[int]) -> str:
    match location:
        case ["lora", "scale", *_]:
            return "lora_scale"
        case ["lora", *_]:
            return "lora_uri"
        case ["loras", int(index), *_] if index < len(rows):
            return f"lora_{rows[index]}"
        case ["edit", "strength", *_]:
            return "strength"
        case ["control", str(part), *_]:
            return f"control_{part}"
        case ["signature", *_]:
            return "artist"
        case [str(name), *_]:
            return name
    return ""
