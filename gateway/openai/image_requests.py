"""OpenAI's image requests, and the commands built from them. What is not supported is refused by name, never ignored."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from contracts.claim import ImageFormat
from contracts.image import MAX_LORAS, Lora, SchedulerName, SideLength
from gateway.callers import caller_of
from gateway.json_body import SHORT_JSON_BYTES, parse_json
from gateway.problems import HttpProblem
from gateway.strict_model import HttpModel, strict_model
from gateway.text.uploads import store_base64

DEFAULT_IMAGE_MODEL = "image"
"""The name by which a client may request whatever model the image actor has."""
MAX_IMAGES_PER_COMMAND = 4
BYTES_PER_IMAGE_BYTE = 3
"""The image, its base64 text, and the response."""
MAX_BYTES_PER_PIXEL: dict[ImageFormat, float] = {"png": 3.1, "jpeg": 4.3, "webp": 1.5}
"""Of a picture whose pixels are noise, in the best quality."""
AUTO_SIDE, AUTO_SIDE_OF_EDITS = 1024, 2048
"""Pixels: what the size `auto` is taken for before the model decides it, and the longest side of an edit, whose picture decides it."""
STEPS_BY_QUALITY = {"low": 20, "medium": 30, "high": 75, "hd": 75}
"""Diffusion steps by quality; other qualities leave the number to the actor."""
LOSSLESS = 100
IMAGE_REQUEST_EXAMPLE: dict[str, JsonValue] = {
    "prompt": "a red fox in fresh snow, watercolour",
    "n": 1,
    "size": "512x512",
    "response_format": "b64_json",
}
_LoraFields: Any = strict_model(Lora)
_SIDE = TypeAdapter(SideLength)


def parse_text_of_form(value: Any) -> Any:
    """A form has texts only: a list in one is JSON. Raises ValueError."""
    if not isinstance(value, str):
        return value
    if len(value) > SHORT_JSON_BYTES:
        raise ValueError(f"the JSON has more than {SHORT_JSON_BYTES} characters")
    return parse_json(value)


def read_sides(size: str) -> tuple[int, int]:
    """Width and height of `640x384`."""
    width, height = map(int, size.split("x"))
    return width, height


def check_size(size: str | None) -> str | None:
    """A size whose sides are those of a command. Raises ValueError."""
    if size and size != "auto":
        try:
            for side in read_sides(size):
                _SIDE.validate_python(side)
        except ValidationError:
            raise ValueError("the sides are 64 to 2048 pixels, and multiples of 8") from None
    return size


class PictureRequest(HttpModel):
    """What both image requests have. `seed` and the fields after it are extensions; OpenAI's clients send them in `extra_body`."""

    model_config = ConfigDict(extra="forbid")
    auto_side: ClassVar[int] = AUTO_SIDE

    prompt: str = Field(min_length=1, max_length=4000)
    model: str | None = Field(None, description="A name from IMAGE_MODELS; `image` or none: the actor's default.")
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    size: Annotated[str | None, AfterValidator(check_size)] = Field(
        "auto",
        pattern=r"^(auto|[1-9]\d{1,3}x[1-9]\d{1,3})$",
        description="`auto`: the model's own size, or that of the picture. Sides: 64 to 2048, multiples of 8.",
    )
    response_format: Literal["b64_json", "url"] | None = Field("b64_json", description="`url`: where the image can be downloaded.")
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = Field(
        "auto", description="Decides the number of diffusion steps."
    )
    output_format: ImageFormat | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="The quality of JPEG and WebP, 100 the best; none: 90."
    )
    background: Literal["auto", "opaque"] | None = "auto"
    moderation: Literal["auto", "low"] | None = Field("auto", description="Prompts are not moderated, whichever is sent.")
    stream: bool | None = Field(False, description="Server-sent events; one image.")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="At most so many previews in a stream: small JPEGs of the unfinished image."
    )
    user: str | None = None
    safety_identifier: str | None = None
    seed: int | None = Field(None, ge=0, lt=2**62)
    steps: int | None = Field(None, ge=1, le=500)
    negative_prompt: str | None = Field(None, max_length=4000)
    guidance_scale: float | None = Field(None, ge=0, le=50)
    true_cfg_scale: float | None = Field(None, ge=1, le=50)
    scheduler: SchedulerName | None = None
    loras: Annotated[list[_LoraFields] | None, Field(max_length=MAX_LORAS), BeforeValidator(parse_text_of_form)] = Field(
        None, description="Each with a `name` from IMAGE_LORAS or a `uri`, and its `scale`. In a form: as JSON."
    )

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height; None: the model, or the picture, decides."""
        if not self.size or self.size == "auto":
            return None
        return read_sides(self.size)

    @property
    def as_base64(self) -> bool:
        return self.response_format != "url"

    def check(self, share_bytes: int) -> None:
        """Before any work: whether the fields fit together, and the images into a response. Raises HttpProblem(400)."""
        if self.stream and (self.n or 1) > 1:
            raise HttpProblem(400, "invalid-request", "a stream is of one image: send a request for each", param="n")
        if self.stream and not self.as_base64:
            raise HttpProblem(400, "invalid-request", "the events of a stream have b64_json only", param="response_format")
        if self.partial_images and not self.stream:
            raise HttpProblem(400, "invalid-request", "partial images are sent in a stream: set stream to true", param="partial_images")
        if (self.output_format or "png") == "png" and self.output_compression not in (None, LOSSLESS):
            detail = "a PNG is lossless: leave it out, or set output_format to jpeg or webp"
            raise HttpProblem(400, "invalid-request", detail, param="output_compression")
        self._check_memory(share_bytes)

    def _check_memory(self, share_bytes: int) -> None:
        width, height = self.sides or (self.auto_side, self.auto_side)
        image_bytes = int(width * height * MAX_BYTES_PER_PIXEL[self.output_format or "png"]) * BYTES_PER_IMAGE_BYTE
        if self.as_base64 and image_bytes * (self.n or 1) > share_bytes:
            most = share_bytes // image_bytes
            held = f"at most {most} images" if most else "no image"
            detail = (
                f"a response with b64_json holds {held} of {width}x{height}: ask for fewer, for a smaller size, or for response_format url"
            )
            raise HttpProblem(400, "too-many-pixels", detail, param="n")

    def commands(self, pictures: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """One command per four images. Image number i has the seed `seed` + i. `pictures`: `edit` or `control`, with claims."""
        names = {"prompt", "negative_prompt", "guidance_scale", "true_cfg_scale", "scheduler", "loras"}
        fields = self.model_dump(mode="json", include=names, exclude_none=True) | (pictures or {})
        if self.model and self.model != DEFAULT_IMAGE_MODEL:
            fields["model"] = self.model
        if steps := self.steps or STEPS_BY_QUALITY.get(self.quality or ""):
            fields["steps"] = steps
        if self.sides:
            fields["width"], fields["height"] = self.sides
        if self.output_format in ("jpeg", "webp"):
            quality = {} if self.output_compression is None else {"quality": max(1, self.output_compression)}
            fields |= {"output_format": self.output_format} | quality
        if self.partial_images:
            fields["preview"] = True
        count = self.n or 1
        for first in range(0, count, MAX_IMAGES_PER_COMMAND):
            seed = {} if self.seed is None else {"seed": self.seed + first}
            yield fields | seed | {"count": min(MAX_IMAGES_PER_COMMAND, count - first)}


class ControlRequest(HttpModel):
    """A picture that the image follows."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(min_length=1, description="base64, with or without a `data:` prefix.")
    model: str = Field(min_length=1, max_length=200, description="One of the worker's IMAGE_CONTROLNETS.")
    scale: float = Field(1.0, ge=0, le=4)


class ImageRequest(PictureRequest):
    """A request for images. `seed` and the fields after it are extensions; OpenAI's clients send them in `extra_body`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [IMAGE_REQUEST_EXAMPLE]})

    style: None = Field(None, description="Not supported: describe it in the prompt.")
    control: ControlRequest | None = None

    async def store_control(self, request: Request) -> dict[str, Any]:
        """The command's `control`, with the claim on its picture. Raises HttpProblem(400, 413, 503), TemporaryError."""
        if self.control is None:
            return {}
        claim = await store_base64(request, self.control.image, caller_of(request))
        image = claim.model_dump(mode="json", exclude_none=True)
        return {"control": {"image": image, "model": self.control.model, "scale": self.control.scale}}


class EditRequest(PictureRequest):
    """A request to edit a picture: the fields of the form beside its files."""

    auto_side: ClassVar[int] = AUTO_SIDE_OF_EDITS

    strength: float | None = Field(None, gt=0, le=1, description="The part of the steps that is made; 1 keeps nothing. None: 0.8.")
    input_fidelity: Literal["low"] | None = Field(None, description="`high` is not supported: lower the strength instead.")
