"""An example of every message: by hand where a story is told, else made from the contract and checked against it."""

import re
import types
from datetime import datetime
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

MOMENT = "2026-11-21T03:00:00Z"
SAMPLES: dict[str, Any] = {
    "prompt": "a harbour at dusk", "text": "Fresh today", "job_id": "generation-500", "name": "gen-500", "step": "image",
    "message_id": "312fe0cd-d33a-5bad-95ab-b82fbdffacdd", "uri": "s3://media/claims/ab/abab.png", "media_type": "image/png", "size": 1234,
    "generation_id": 500, "message": "no weights at s3://models/style-10.safetensors", "seed": 42, "steps": 20, "guidance_scale": 7.5,
    "result_url": "https://media.example/generations/gen-500.png", "id": "4711", "kind": "image_order", "worker": "gpu-1:77",
}  # fmt: skip
"""Values by the name of their field, where the type says too little."""
PATTERNED = ("ab" * 32, "image", "ffffff", "gen-500", "lora-missing", "A harbour at dusk.")

STYLE = {"generation_id": 500, "style_id": 10}
ORDERS: dict[str, dict[str, Any]] = {
    "nested, with parameters (form A)": {
        "task_id": "5e0b", "type": "image_generation", "callback_url": "https://backend.example/api/webhooks/generation/complete",
        "data": STYLE | {"prompt": "a harbour at dusk", "parameters": {"width": 512, "height": 768, "steps": 20, "cfg_scale": 6.0}},
    },
    "nested, with a LoRA and a signature (form C)": {
        "type": "image_generation",
        "data": STYLE | {
            "prompt": "harbour, dusk", "aspect_ratio": "1:2", "lora_path": "gs://media/models/style-10/adapter_model.safetensors",
            "signature_path": "https://media.example/signature.png", "prompt_tags": ["harbour", "dusk"],
        },
    },
    "flat (form B)": STYLE | {
        "lora_model_url": "s3://models/style-10.safetensors", "prompt_tags": ["harbour", "dusk"], "artist_name": "김작가",
        "webhook_url": "https://backend.example",
    },
}  # fmt: skip


def example(model: type[BaseModel]) -> dict[str, Any]:
    """What the model asks for, and no more. Raises ValueError for a field that no sample suits."""
    made = {name: value(name, field, field.annotation) for name, field in model.model_fields.items() if told(name, field)}
    model.model_validate(made)
    return made


def told(name: str, field: FieldInfo) -> bool:
    return field.is_required() or bool(field.examples)


def value(name: str, field: FieldInfo | None, annotation: Any) -> Any:
    if field and field.examples:
        return field.examples[0]
    kind, patterns = bare(annotation, field)
    if patterns:
        return fitting(name, patterns)
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    if get_origin(kind) is list:
        return [value(name.removesuffix("s"), None, get_args(kind)[0])]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return example(kind)
    if hasattr(kind, "__members__"):
        return str(next(iter(kind)))
    return SAMPLES.get(name, plain(kind))


def plain(kind: Any) -> Any:
    return {str: "text", bool: True, int: 1, float: 1.0, datetime: MOMENT}.get(kind, {})


def fitting(name: str, patterns: list[str]) -> str:
    for sample in (str(SAMPLES.get(name, "")), *PATTERNED):
        if all(re.search(pattern, sample) for pattern in patterns):
            return sample
    raise ValueError(f"no sample suits the field {name!r} with {patterns}: give its Field `examples=[…]`")


def bare(annotation: Any, field: FieldInfo | None) -> tuple[Any, list[str]]:
    """The type inside `Annotated` and `| None`, and the patterns met on the way."""
    patterns = [mark.pattern for mark in (field.metadata if field else []) if getattr(mark, "pattern", None)]
    while hasattr(annotation, "__metadata__") or get_origin(annotation) in {Union, types.UnionType}:
        if hasattr(annotation, "__metadata__"):
            for mark in annotation.__metadata__:
                patterns += [part.pattern for part in getattr(mark, "metadata", [mark]) if getattr(part, "pattern", None)]
            annotation = annotation.__origin__
        else:
            annotation = next(part for part in get_args(annotation) if part is not type(None))
    return annotation, patterns


def event_example(step: str, kind: str, **said: Any) -> dict[str, Any]:
    base = {"kind": kind, "step": step, "job_id": SAMPLES["job_id"], "at": MOMENT, "message_id": SAMPLES["message_id"], "attempt": 1}
    return base | {"worker": SAMPLES["worker"]} | said


def header_example(kind: str, **said: Any) -> dict[str, Any]:
    """`kind`: the message's AMQP type."""
    base = {"message_id": SAMPLES["message_id"], "correlation_id": SAMPLES["job_id"], "content_type": "application/json"}
    return base | {"delivery_mode": 2, "type": kind} | said
