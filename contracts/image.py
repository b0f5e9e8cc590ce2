"""The image step: generate one to four images from a prompt."""

from typing import Annotated, Literal

from pydantic import Field

from contracts.claim import Claim
from contracts.watermark import Signature
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

SideLength = Annotated[int, Field(ge=64, le=2048, multiple_of=8, description="Pixels.")]
SchedulerName = Literal["dpm++", "euler", "euler-a", "ddim", "pndm", "lms", "unipc"]
AlphaSource = Literal["assumed", "setting", "order", "adapter_config", "weights"]
"""Where the alpha of a LoRA is known from, the least certain first."""


class Lora(WireModel):
    """LoRA weights in the safetensors format. PEFT's `adapter_config.json` beside them is read."""

    uri: str = Field(description="`s3://`, `gs://`, `https://` or `file://`; one that ends in a slash is the folder of an adapter.")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    scale: float = Field(1.0, ge=-4, le=4)
    alpha: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Alpha of the training, if neither the weights nor their configuration says it; None: the worker's IMAGE_LORA_ALPHA.",
    )
    required: bool = Field(True, description="False: when the weights are missing, continue with the base model.")


class Image(Command):
    """Generate images. The same seed gives the same image, alone or in a batch, within 1 of 255 per channel value."""

    prompt: str = Field(min_length=1, max_length=4000)
    negative_prompt: str = Field("", max_length=4000)
    width: SideLength = 512
    height: SideLength = 512
    steps: int = Field(50, ge=1, le=500)
    guidance_scale: float = Field(7.5, ge=0, le=50)
    scheduler: SchedulerName = "dpm++"
    seed: int | None = Field(None, ge=0, lt=2**63, description="None: a random seed, which the result reports.")
    count: int = Field(1, ge=1, le=4, description="The number of images; image i has the seed `seed + i`.")
    lora: Lora | None = None
    signature: Signature | None = Field(
        None, description="Not drawn here: its image is fetched before anything is generated, so that a later step does not fail for it."
    )
    model: str | None = Field(None, description="One of the worker's IMAGE_MODELS; None: its IMAGE_MODEL.")
    deterministic: bool = Field(False, description="Never share a batch with other commands.")
    preview: bool = Field(False, description="Add a small JPEG to each progress event.")


class ImageMetadata(WireModel):
    """How the images were generated. The `complete` webhook contains it."""

    seed: int
    steps: int
    guidance_scale: float


class ImageDone(Result):
    images: list[Claim]
    metadata: ImageMetadata
    seeds: list[int] = Field(default_factory=list, description="The seed of each image.")
    made_with: dict[str, str] = Field(
        default_factory=dict, description="As in the metadata of each PNG: sha256 of prompt, model and LoRA, scheduler, library versions."
    )
    flagged: list[bool] = Field(default_factory=list, description="The safety checker's finding for each image, when the checker is on.")
    prompt_tokens_left_out: int = Field(
        0, ge=0, description="Tokens at the end of the prompt that the model did not read, since its text encoder takes 77; 0: it read all."
    )
    negative_prompt_tokens_left_out: int = Field(0, ge=0, description="The same of the negative prompt.")
    lora_missing: bool = Field(False, description="The LoRA was missing and not required: the base model was used.")
    lora_alpha_from: AlphaSource | None = Field(
        None,
        description="Where the LoRA's alpha is known from. `order` and `setting`: they named it, because nothing at its address did; "
        "`assumed`: nothing named it, and it was taken to be the rank. `lora_scaling` in `made_with` is the factor that follows from it.",
    )
    rungs: list[str] = Field(default_factory=list, description="The fallbacks that were used because device memory ran out.")
    largest_batch: int = Field(1, ge=1, description="The largest number of images in a denoising step with these, themselves included.")
    queued_seconds: float = Field(0.0, ge=0, description="The wait for the device, in the worker.")
    compute_seconds: float = Field(0.0, ge=0, description="From the first denoising step to the encoded images.")
