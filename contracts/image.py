"""The image step: one order of one to four pictures."""

from typing import Annotated, Literal

from pydantic import Field

from contracts.claim import Claim
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

SideLength = Annotated[int, Field(ge=64, le=2048, multiple_of=8, description="Pixels.")]
SchedulerName = Literal["dpm++", "euler", "euler-a", "ddim", "pndm", "lms", "unipc"]


class Lora(WireModel):
    """Style weights in safetensors form."""

    uri: str = Field(description="`s3://`, `https://` or `file://`.")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    scale: float = Field(1.0, ge=-4, le=4)
    required: bool = Field(True, description="False: when the weights are missing, go on with the base model alone.")


class Image(Command):
    """Draw pictures. The same seed gives the same pictures, alone or beside other orders, within 1 of 255."""

    prompt: str = Field(min_length=1, max_length=4000)
    negative_prompt: str = Field("", max_length=4000)
    width: SideLength = 512
    height: SideLength = 512
    steps: int = Field(50, ge=1, le=500)
    guidance_scale: float = Field(7.5, ge=0, le=50)
    scheduler: SchedulerName = "dpm++"
    seed: int | None = Field(None, ge=0, lt=2**63, description="None: one is drawn and recorded.")
    count: int = Field(1, ge=1, le=4, description="Picture i is drawn with seed + i.")
    lora: Lora | None = None
    model: str | None = Field(None, description="A name from the worker's IMAGE_MODELS; None: its IMAGE_MODEL.")
    deterministic: bool = Field(False, description="Run alone, never in a batch.")
    preview: bool = Field(False, description="Send a tiny JPEG along with progress.")


class ImageMetadata(WireModel):
    """How the pictures were made; the backend's `complete` webhook carries it."""

    seed: int
    steps: int
    guidance_scale: float


class ImageDone(Result):
    images: list[Claim]
    metadata: ImageMetadata
    seeds: list[int] = Field(default_factory=list, description="Of each picture.")
    made_with: dict[str, str] = Field(
        default_factory=dict, description="As in each PNG: sha256 of prompt, model and LoRA, scheduler, versions of the libraries."
    )
    flagged: list[bool] = Field(default_factory=list, description="What the safety checker says of each picture, when it is on.")
    lora_missing: bool = Field(False, description="The weights were not there and not required: drawn with the base model alone.")
    rungs: list[str] = Field(default_factory=list, description="What was done for want of memory.")
    largest_batch: int = Field(1, ge=1, description="So many pictures shared a step with these, themselves among them.")
    queued_seconds: float = Field(0.0, ge=0, description="Waited for the device, in the worker.")
    compute_seconds: float = Field(0.0, ge=0, description="From the first step to the encoded pictures.")
