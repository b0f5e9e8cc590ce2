"""The foreign message on the queue `image_generation`: three published forms of an image order.

Form A nests `data.parameters`, form C nests `data` with a LoRA path and a signature, form B is flat. Other fields are ignored.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from contracts.watermark import Opacity
from contracts.wire_model import WireModel

ASPECT_RATIO_SIZES: Mapping[str, tuple[int, int]] = {"1:1": (512, 512), "2:2": (1024, 1024), "1:2": (512, 1024), "2:1": (1024, 512)}
"""Aspect ratio to width and height in pixels."""

GenerationId = Annotated[int, Field(ge=0, le=2**63 - 1)]
PromptText = Annotated[str, Field(max_length=4000)]
Uri = Annotated[str, Field(max_length=2048)]
LoraAlpha = Annotated[
    float | None,
    Field(gt=0, le=1e6, description="Ours: alpha of the training, if neither the weights nor their `adapter_config.json` says it."),
]


class Parameters(WireModel):
    """The parameters of form A. One of its publishers sends `size` ("512x512") in place of width and height.

    Steps and scale that are not named are the model's own.
    """

    width: int | None = None
    height: int | None = None
    size: str | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    seed: int | None = None


class SignatureConfig(WireModel):
    position: str = "bottom-right"
    size: str = "medium"
    opacity: Opacity = 0.7


class OrderData(WireModel):
    """The `data` of forms A and C. `count` and `allow_base_model` are our additions: by default one image; see ORDER_ASSETS_REQUIRED."""

    generation_id: GenerationId
    style_id: int | None = None
    prompt: PromptText = ""
    prompt_tags: list[str] = Field(default_factory=list, max_length=100)
    negative_prompt: PromptText = ""
    parameters: Parameters | None = None
    aspect_ratio: str | None = None
    num_inference_steps: int | None = None
    seed: int | None = None
    lora_path: Uri | None = None
    lora_alpha: LoraAlpha = None
    artist_name: str | None = Field(None, max_length=200)
    signature_path: Uri | None = None
    signature_config: SignatureConfig = SignatureConfig()
    count: int = 1
    allow_base_model: bool = False


class NestedOrder(WireModel):
    """Forms A and C."""

    type: Literal["image_generation"]
    data: OrderData
    task_id: str | None = None
    callback_url: Uri | None = Field(None, description="Form A: the address for webhooks.")
    webhook_url: Uri | None = Field(None, description="Form C: written by the backend, read by no consumer.")
    created_at: str | None = None


class FlatOrder(WireModel):
    """Form B. Its publisher uses the seed 42 when none is given."""

    generation_id: GenerationId
    style_id: int | None = None
    lora_model_url: Uri | None = None
    lora_alpha: LoraAlpha = None
    prompt_tags: list[str] = Field(min_length=1, max_length=100)
    artist_name: str | None = Field(None, max_length=200)
    seed: int | None = 42
    webhook_url: Uri | None = Field(None, description="The base URL of the backend.")
    count: int = 1
    allow_base_model: bool = False


def read_generation_id(message: Any) -> int | None:
    """The generation id of a message that may be invalid; None when it has none."""
    nested = message.get("data") if isinstance(message, dict) else None
    for fields in (nested, message):
        number = fields.get("generation_id") if isinstance(fields, dict) else None
        if isinstance(number, str) and re.fullmatch(r"[0-9]{1,18}", number):
            return int(number)
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63:
            return number
    return None
