"""The orders that a client may submit, and the routing slips built from them. Unknown fields are rejected."""

import json
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from contracts.image import Image
from contracts.itineraries import ITINERARIES
from contracts.overlay import Overlay
from contracts.slip import LoopBack, Slip, SlipStep
from contracts.steps import COMMANDS, RESULTS, ClientStep
from contracts.watermark import Signature
from contracts.wire import Step
from gateway.jobs.image_fields import image_fields
from gateway.strict_model import HttpModel, strict_model

_ImageFields: Any = image_fields()
_SingleImageFields: Any = image_fields(without=("count",))
_OverlayFields: Any = strict_model(Overlay, without=("slip", "images", "text", "font_recommendation", "job_variants_id", "proposal_id"))
_SignatureFields: Any = strict_model(Signature)

FILE_FIELDS = {"output_format", "quality"}
IMAGE_ORDER_EXAMPLE: dict[str, JsonValue] = {
    "kind": "image_order",
    "prompt": "a red fox in fresh snow, watercolour",
    "seed": 42,
    "artist": "Jane Doe",
}
AD_EXAMPLE: dict[str, JsonValue] = {
    "kind": "ad",
    "prompt": "a bowl of ramen, steam, warm light",
    "text": "따뜻한 한 그릇",
    "seed": 7,
    "tries": 2,
}
ITINERARY_EXAMPLE: dict[str, JsonValue] = {
    "kind": "itinerary",
    "stops": [{"step": "consult", "arguments": {"prompt": "What makes a poster readable?"}}],
}

TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:@-]{1,128}$")]


class JsonSafe(HttpModel):
    """An order that JSON and PostgreSQL can hold: no lone surrogate, no NUL, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="after")
    def check_json_safe(self) -> Self:
        try:
            text = json.dumps(self.model_dump(mode="python", exclude_unset=True), ensure_ascii=False, allow_nan=False, default=str)
            text.encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not valid as JSON: {str(error)[:200]}") from None
        if "\\u0000" in text:
            raise ValueError("a text must not contain NUL")
        return self


class PictureOrder(JsonSafe):
    """The fields that ImageOrder and Ad share: the signature, and the backend whose webhooks are called."""

    artist: str | None = Field(None, max_length=200)
    signature: _SignatureFields | None = None
    generation_id: int | None = Field(None, ge=0, lt=2**63, description="If set, the backend's webhooks are called.")
    base_url: str | None = Field(None, max_length=2048, description="The backend, `https://host:port`; WEBHOOK_ALLOWED_HOSTS must name it.")
    prompt_tags: list[str] = Field(default_factory=list, max_length=100)
    tenant: TenantName | None = Field(None, description="The tenant of the job. Default: the name of the API key.")

    @field_validator("base_url")
    @classmethod
    def reduce_to_origin(cls, base_url: str | None) -> str | None:
        """A path, a query or a user is dropped: the paths of the webhooks are ours."""
        from bus.net.ssrf import url_origin  # here, so that a gateway starts without httpx

        return url_origin(base_url) if base_url else None

    def variables(self, job_id: str) -> dict[str, Any]:
        """The slip's variables. The image is named after the job, so that no order overwrites the image of another."""
        variables = self.model_dump(mode="json", exclude_none=True, include=set(PictureOrder.model_fields) - {"tenant"})
        name = f"gen-{self.generation_id}" if self.generation_id is not None else f"job-{job_id}"
        return variables | {"name": name}


class ImageOrder(PictureOrder, _ImageFields):  # type: ignore[misc]
    """Generate an image, sign it, upload it, and call the backend's webhook."""

    model_config = ConfigDict(json_schema_extra={"examples": [IMAGE_ORDER_EXAMPLE]})

    kind: Literal["image_order"]

    def slip(self, job_id: str) -> Slip:
        arguments = {Step.IMAGE: _image_arguments(self), Step.WATERMARK: _file_arguments(self)}
        return _standard_slip(self.kind, arguments, self.variables(job_id) | _seed_variable(self))


class Ad(PictureOrder, _SingleImageFields):  # type: ignore[misc]
    """Write the ad copy unless given, generate an image, validate it (and retry if rejected), overlay the copy, judge, sign, upload."""

    model_config = ConfigDict(json_schema_extra={"examples": [AD_EXAMPLE]})

    kind: Literal["ad"]
    text: str | None = Field(None, min_length=1, max_length=500, description="The ad copy laid over the image. None: it is generated.")
    brief: str | None = Field(None, min_length=1, max_length=4000, description="What the generated ad copy advertises. None: the prompt.")
    tries: int = Field(2, ge=0, le=10, description="How often a rejected image is generated again, each time with another seed.")
    overlay: _OverlayFields | None = None

    def slip(self, job_id: str) -> Slip:
        overlay = self.overlay.model_dump(mode="json", exclude_unset=True) if self.overlay else {}
        copy = {"text": self.text, "ad_copy_text": self.text} if self.text else {}
        arguments = {Step.TEXT: ad_copy_command(self.brief or self.prompt), Step.IMAGE: _image_arguments(self), Step.OVERLAY: overlay}
        arguments |= {Step.WATERMARK: _file_arguments(self)}
        without = {Step.TEXT} if self.text else set()
        return _standard_slip(self.kind, arguments, self.variables(job_id) | _seed_variable(self) | copy, self.tries, without)


class StepOrder(HttpModel):
    """One step. An argument is a field of the step's command; other fields are taken from the variables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: ClientStep
    arguments: dict[str, Any] = Field(default_factory=dict, max_length=64)
    gate: str | None = Field(None, max_length=64, description="A boolean field of the step's result: the job ends here when it is false.")

    @model_validator(mode="after")
    def check_step(self) -> Self:
        _arguments_model(self.step).model_validate(self.arguments)
        result = RESULTS[self.step].model_fields
        if self.gate is not None and (self.gate not in result or result[self.gate].annotation is not bool):
            gates = [name for name, field in result.items() if field.annotation is bool]
            raise ValueError(f"{self.step} has no gate {self.gate!r}; it has {', '.join(gates) or 'none'}")
        return self


class Itinerary(JsonSafe):
    """A custom itinerary: steps with arguments. The fields of each result become variables, from which the next command is built."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [ITINERARY_EXAMPLE]})

    kind: Literal["itinerary"]
    stops: list[StepOrder] = Field(min_length=1, max_length=32)
    variables: dict[str, Any] = Field(default_factory=dict, max_length=64)
    answer: list[str] = Field(default_factory=list, max_length=64, description="Variables to add to the last step's result.")
    tenant: TenantName | None = None

    @model_validator(mode="after")
    def check_first_command(self) -> Self:
        """The first command must be complete already."""
        first = self.stops[0]
        fields = COMMANDS[first.step].model_fields
        variables = {name: value for name, value in self.variables.items() if name in fields and name != "slip"}
        command = image_fields() if Step(first.step) == Step.IMAGE else COMMANDS[first.step]
        command.model_validate(variables | first.arguments)
        return self

    def slip(self, job_id: str) -> Slip:
        steps = [SlipStep(step=step.step, arguments=step.arguments, gate=step.gate) for step in self.stops]
        return Slip(itinerary=steps, variables=self.variables, answer=self.answer)


JobOrder = Annotated[ImageOrder | Ad | Itinerary, Field(discriminator="kind")]


def _arguments_model(step: str) -> type[BaseModel]:
    """The fields of a step's command, none of them required."""
    if step == Step.IMAGE:
        return image_fields(optional=True)
    return strict_model(COMMANDS[step], without=("slip",), optional=True)


def _image_arguments(order: Any) -> dict[str, Any]:
    """Not variables: other steps have a `prompt` of their own. Only the seed is one, since a loop-back changes it, and the signature."""
    fields: dict[str, Any] = order.model_dump(
        mode="json", exclude_unset=True, include=set(Image.model_fields) - {"seed", "signature", *FILE_FIELDS}
    )
    return fields


def _file_arguments(order: Any) -> dict[str, Any]:
    """For the step that writes the last file of a picture: those before it pass PNGs, so that nothing is compressed twice."""
    fields: dict[str, Any] = order.model_dump(mode="json", exclude_unset=True, exclude_none=True, include=FILE_FIELDS)
    return fields


def ad_copy_command(brief: str) -> dict[str, Any]:
    """A command to the text worker for one short line in the language of the brief."""
    instruction = "You write the copy of advertisements. Answer with one short line, in the language of the brief, without quotation marks."
    return {"messages": [{"role": "system", "content": instruction}, {"role": "user", "content": brief}], "max_tokens": 64}


def _seed_variable(order: Any) -> dict[str, Any]:
    return {} if order.seed is None else {"seed": order.seed}


def _standard_slip(
    kind: str, arguments: dict[Step, dict[str, Any]], variables: dict[str, Any], tries: int = 0, without: Collection[Step] = ()
) -> Slip:
    """A standard itinerary with its arguments. Webhooks are called only with a generation id."""
    itinerary, webhooks = ITINERARIES[kind], "generation_id" in variables
    steps = [
        step.model_copy(update={"arguments": step.arguments | arguments.get(Step(step.step), {})})
        for step in itinerary.steps
        if (webhooks or step.step != Step.WEBHOOK) and step.step not in without
    ]
    if itinerary.loop_back_to:
        steps = _with_loop_back(steps, itinerary.loop_back_to, tries, itinerary.reseed)
    slip = Slip(itinerary=steps, variables=variables, answer=itinerary.answer)
    hooks = {"on_progress": itinerary.on_progress, "on_failure": itinerary.on_failure, "on_refusal": itinerary.on_refusal}
    return slip.model_copy(update=hooks) if webhooks else slip


def _with_loop_back(steps: list[SlipStep], to: Step, tries: int, reseed: list[str]) -> list[SlipStep]:
    """Loop back from the step with the gate to an earlier one, up to `tries` times."""
    names = [step.step for step in steps]
    start, gate = names.index(to), next(index for index, step in enumerate(steps) if step.gate)
    loop_back = LoopBack(stops=steps[start : gate + 1], times=tries, fresh=reseed)
    return [*steps[:gate], steps[gate].model_copy(update={"again": loop_back}), *steps[gate + 1 :]]
