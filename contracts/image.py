"""The image step: generate one to four images from a prompt, or from a prompt and a picture."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contracts.claim import Claim, ImageFormat
from contracts.watermark import Signature
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

SideLength = Annotated[int, Field(ge=64, le=2048, multiple_of=8, description="Pixels.")]
SchedulerName = Literal["dpm++", "euler", "euler-a", "ddim", "pndm", "lms", "unipc"]
MAX_LORAS = 8
"""Of one order."""
AlphaSource = Literal["assumed", "setting", "order", "adapter_config", "weights"]
"""Where the alpha of a LoRA is known from, the least certain first."""


class Lora(WireModel):
    """LoRA weights in the safetensors format, by address or by name. PEFT's `adapter_config.json` beside them is read."""

    uri: str | None = Field(
        None, description="`s3://`, `gs://`, `https://` or `file://`; one that ends in a slash is the folder of an adapter."
    )
    name: str | None = Field(None, max_length=200, description="One of the worker's IMAGE_LORAS, in place of an address.")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    scale: float = Field(1.0, ge=-4, le=4)
    alpha: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Alpha of the training, if neither the weights nor their configuration says it; None: the worker's IMAGE_LORA_ALPHA.",
    )
    required: bool = Field(True, description="False: when the weights are missing, continue without them.")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.uri is None) == (self.name is None):
            raise ValueError("a LoRA has either a uri or a name")
        return self


class Edit(WireModel):
    """The picture that an order starts from."""

    image: Claim
    mask: Claim | None = Field(
        None,
        description="Of the size of the image. White is drawn anew, black stays unchanged; in a mask with transparent pixels, those are "
        "drawn anew. None: the whole picture is.",
    )
    strength: float = Field(0.8, gt=0, le=1, description="The part of the steps that is made: 1 keeps nothing of what is drawn anew.")


class Control(WireModel):
    """A picture, such as edges or a pose, that a ControlNet follows."""

    image: Claim
    model: str = Field(min_length=1, max_length=200, description="One of the worker's IMAGE_CONTROLNETS.")
    scale: float = Field(1.0, ge=0, le=4)


class Image(Command):
    """Generate images. The same seed gives the same image, alone or in a batch, within 1 of 255 per channel value.

    What is None is decided by the model's family; the result says what it was.
    """

    prompt: str = Field(min_length=1, max_length=4000)
    negative_prompt: str = Field("", max_length=4000)
    width: SideLength | None = Field(
        None,
        description="Pixels. None: as the picture of `edit` or `control`, scaled down to 2048 on its longer side and rounded down to a "
        "multiple that the family can, at least 64; without a picture the model's own.",
    )
    height: SideLength | None = None
    steps: int | None = Field(None, ge=1, le=500)
    guidance_scale: float | None = Field(None, ge=0, le=50)
    true_cfg_scale: float | None = Field(
        None, ge=1, le=50, description="Of models whose guidance is distilled, such as Flux: how strongly a negative prompt counts."
    )
    scheduler: SchedulerName | None = None
    seed: int | None = Field(None, ge=0, lt=2**63, description="None: a random seed, which the result reports.")
    count: int = Field(1, ge=1, le=4, description="The number of images; image i has the seed `seed + i`.")
    lora: Lora | None = None
    loras: list[Lora] = Field(default_factory=list, max_length=MAX_LORAS, description="Further ones, each with its own scale.")
    edit: Edit | None = None
    control: Control | None = None
    signature: Signature | None = Field(
        None, description="Not drawn here: its image is fetched before anything is generated, so that a later step does not fail for it."
    )
    model: str | None = Field(None, description="One of the worker's IMAGE_MODELS; None: its IMAGE_MODEL.")
    deterministic: bool = Field(False, description="Never share a batch with other commands.")
    preview: bool = Field(False, description="Add a small JPEG to each progress event.")
    output_format: ImageFormat = "png"
    quality: int | None = Field(None, ge=1, le=100, description="Of JPEG and WebP; None: 90.")

    @model_validator(mode="after")
    def _check_quality(self) -> Self:
        if self.quality is not None and self.output_format == "png":
            raise ValueError("a PNG has no quality: name the output_format jpeg or webp")
        return self

    @model_validator(mode="after")
    def _check_lora_count(self) -> Self:
        if self.lora is not None and len(self.loras or ()) >= MAX_LORAS:
            raise ValueError(f"an order has at most {MAX_LORAS} LoRAs, `lora` included")
        return self

    @property
    def all_loras(self) -> list[Lora]:
        return [*([self.lora] if self.lora else []), *self.loras]


class ImageMetadata(WireModel):
    """How the images were generated. The `complete` webhook contains it."""

    seed: int
    steps: int
    guidance_scale: float


class ImageDone(Result):
    images: list[Claim]
    metadata: ImageMetadata
    family: str = Field("", description="The model's family, such as `Stable Diffusion XL`.")
    seeds: list[int] = Field(default_factory=list, description="The seed of each image.")
    made_with: dict[str, str] = Field(
        default_factory=dict, description="As in the metadata of each PNG: sha256 of prompt, model and LoRA, scheduler, library versions."
    )
    flagged: list[bool] = Field(default_factory=list, description="The safety checker's finding for each image, when the checker is on.")
    lora_missing: bool = Field(False, description="A LoRA was missing and not required: the picture was drawn without it.")
    lora_alpha_from: AlphaSource | None = Field(
        None,
        description="Where the LoRA's alpha is known from; of several, the least certain. `order` and `setting`: they named it, because "
        "nothing at its address did; `assumed`: nothing named it, and it was taken to be the rank. `lora_scaling` in `made_with` is the "
        "factor that follows from it.",
    )
    rungs: list[str] = Field(default_factory=list, description="The fallbacks that were used because device memory ran out.")
    largest_batch: int = Field(1, ge=1, description="The largest number of images in a denoising step with these, themselves included.")
    queued_seconds: float = Field(0.0, ge=0, description="The wait for the device, in the worker.")
    compute_seconds: float = Field(0.0, ge=0, description="From the first denoising step to the encoded images.")
    device_seconds: float | None = Field(None, ge=0, description="Busy time of the device for this request; None: not known.")
