"""Examples of the messages: written by hand for image orders, otherwise generated from the contract and validated by it."""

import re
from datetime import datetime
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ops.docgen.settings_catalog import unwrap_type

EXAMPLE_TIME = "2026-11-21T03:00:00Z"
VALUE_BY_FIELD: dict[str, Any] = {
    "prompt": "a harbour at dusk", "text": "Fresh today", "job_id": "generation-500", "name": "gen-500", "step": "image",
    "message_id": "312fe0cd-d33a-5bad-95ab-b82fbdffacdd", "uri": "s3://media/claims/ab/abab.png", "media_type": "image/png", "size": 1234,
    "generation_id": 500, "message": "no weights at s3://models/style-10.safetensors", "seed": 42, "steps": 20, "guidance_scale": 7.5,
    "result_url": "https://media.example/generations/gen-500.png", "id": "4711", "kind": "image_order", "worker": "gpu-1:77",
}  # fmt: skip
"""Values by the name of their field."""
PATTERN_SAMPLES = ("ab" * 32, "image", "ffffff", "gen-500", "lora-missing", "A harbour at dusk.")

ORDER_IDS = {"generation_id": 500, "style_id": 10}
IMAGE_ORDER_EXAMPLES: dict[str, dict[str, Any]] = {
    "nested, with parameters (form A)": {
        "task_id": "5e0b", "type": "image_generation", "callback_url": "https://backend.example/api/webhooks/generation/complete",
        "data": ORDER_IDS | {"prompt": "a harbour at dusk", "parameters": {"width": 512, "height": 768, "steps": 20, "cfg_scale": 6.0}},
    },
    "nested, with a LoRA and a signature (form C)": {
        "type": "image_generation",
        "data": ORDER_IDS | {
            "prompt": "harbour, dusk", "aspect_ratio": "1:2", "lora_path": "gs://media/models/style-10/adapter_model.safetensors",
            "signature_path": "https://media.example/signature.png", "prompt_tags": ["harbour", "dusk"],
        },
    },
    "flat (form B)": ORDER_IDS | {
        "lora_model_url": "s3://models/style-10.safetensors", "prompt_tags": ["harbour", "dusk"], "artist_name": "김작가",
        "webhook_url": "https://backend.example",
    },
}  # fmt: skip


def example_payload(model: type[BaseModel]) -> dict[str, Any]:
    """The required fields of the model, and those with an example of their own. Raises ValueError for a field without a fitting sample."""
    included = {name: field for name, field in model.model_fields.items() if field.is_required() or field.examples}
    payload = {name: example_value(name, field, field.annotation) for name, field in included.items()}
    model.model_validate(payload)
    return payload


def example_value(name: str, field: FieldInfo | None, annotation: Any) -> Any:
    if field and field.examples:
        return field.examples[0]
    kind, metadata = unwrap_type(annotation)
    if patterns := patterns_in([*(field.metadata if field else ()), *metadata]):
        return matching_sample(name, patterns)
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    if get_origin(kind) is list:
        return [example_value(name.removesuffix("s"), None, get_args(kind)[0])]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return example_payload(kind)
    if hasattr(kind, "__members__"):
        return str(next(iter(kind)))
    return VALUE_BY_FIELD.get(name, default_of_type(kind))


def default_of_type(kind: Any) -> Any:
    return {str: "text", bool: True, int: 1, float: 1.0, datetime: EXAMPLE_TIME}.get(kind, {})


def matching_sample(name: str, patterns: list[str]) -> str:
    for sample in (str(VALUE_BY_FIELD.get(name, "")), *PATTERN_SAMPLES):
        if all(re.search(pattern, sample) for pattern in patterns):
            return sample
    raise ValueError(f"no sample matches {patterns} of the field {name!r}: add `examples=[…]` to its Field")


def patterns_in(metadata: list[Any]) -> list[str]:
    """The regular expressions among the constraints of a field."""
    constraints = (part for mark in metadata for part in getattr(mark, "metadata", [mark]))
    return [part.pattern for part in constraints if getattr(part, "pattern", None)]


def event_example(step: str, kind: str, **fields: Any) -> dict[str, Any]:
    base = {
        "kind": kind,
        "step": step,
        "job_id": VALUE_BY_FIELD["job_id"],
        "at": EXAMPLE_TIME,
        "message_id": VALUE_BY_FIELD["message_id"],
        "attempt": 1,
    }
    return base | {"worker": VALUE_BY_FIELD["worker"]} | fields


def header_example(message_type: str, **properties: Any) -> dict[str, Any]:
    """The properties of a message of this AMQP type."""
    base = {"message_id": VALUE_BY_FIELD["message_id"], "correlation_id": VALUE_BY_FIELD["job_id"], "content_type": "application/json"}
    return base | {"delivery_mode": 2, "type": message_type} | properties
