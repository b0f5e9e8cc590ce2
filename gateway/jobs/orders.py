"""What a client may order, and the slip that comes of it. Unknown fields are refused."""

import json
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from contracts.image import Image
from contracts.itineraries import ITINERARIES
from contracts.overlay import Overlay
from contracts.slip import LoopBack, Slip, SlipStep
from contracts.steps import COMMANDS, RESULTS
from contracts.watermark import Signature
from contracts.wire import Step
from gateway.strict_model import strict_model

_ImageFields: Any = strict_model(Image, without=("slip",))
_SingleImageFields: Any = strict_model(Image, without=("slip", "count"))
_OverlayFields: Any = strict_model(Overlay, without=("slip", "images", "text", "font_recommendation", "job_variants_id", "proposal_id"))
_SignatureFields: Any = strict_model(Signature)

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


class JsonSafe(BaseModel):
    """An order whose every word can be said on the bus and kept in the ledger: no half surrogate, no NUL, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="after")
    def check_json_safe(self) -> Self:
        try:
            said = json.dumps(self.model_dump(mode="python", exclude_unset=True), ensure_ascii=False, allow_nan=False, default=str)
            said.encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not sayable as JSON: {str(error)[:200]}") from None
        if "\\u0000" in said:
            raise ValueError("a text must not contain NUL")
        return self


class PictureOrder(JsonSafe):
    """What orders of pictures share: the signature, and the backend that is told."""

    artist: str | None = Field(None, max_length=200)
    signature: _SignatureFields | None = None
    generation_id: int | None = Field(None, ge=0, lt=2**63, description="With it the backend's webhooks are called.")
    base_url: str | None = Field(None, max_length=2048, description="The backend, when WEBHOOK_ALLOWED_HOSTS names it.")
    prompt_tags: list[str] = Field(default_factory=list, max_length=100)
    tenant: TenantName | None = Field(None, description="Who pays. Default: the name of the API key.")

    def variables(self, job_id: str) -> dict[str, Any]:
        """What the stops after the first take by name. The picture's name is the job's own, so that no order writes over another's."""
        told = self.model_dump(mode="json", exclude_none=True, include=set(PictureOrder.model_fields) - {"tenant"})
        name = f"gen-{self.generation_id}" if self.generation_id is not None else f"job-{job_id}"
        return told | {"name": name}


class ImageOrder(PictureOrder, _ImageFields):  # type: ignore[misc]
    """Draw, sign, upload, and tell the backend."""

    model_config = ConfigDict(json_schema_extra={"examples": [IMAGE_ORDER_EXAMPLE]})

    kind: Literal["image_order"]

    def slip(self, job_id: str) -> Slip:
        return _standard_slip(self.kind, {Step.IMAGE: _image_arguments(self)}, self.variables(job_id) | _seed_variable(self))


class Ad(PictureOrder, _SingleImageFields):  # type: ignore[misc]
    """Write the copy unless it is given, draw, look whether both suit (and draw again if not), letter, judge, sign, upload, tell."""

    model_config = ConfigDict(json_schema_extra={"examples": [AD_EXAMPLE]})

    kind: Literal["ad"]
    text: str | None = Field(None, min_length=1, max_length=500, description="The copy that is laid over the picture. None: it is written.")
    brief: str | None = Field(None, min_length=1, max_length=4000, description="What the writer is to advertise. None: the prompt.")
    tries: int = Field(2, ge=0, le=10, description="How often a refused picture is drawn again, each time with another seed.")
    overlay: _OverlayFields | None = None

    def slip(self, job_id: str) -> Slip:
        lettering = self.overlay.model_dump(mode="json", exclude_unset=True) if self.overlay else {}
        copy = {"text": self.text, "ad_copy_text": self.text} if self.text else {}
        arguments = {Step.TEXT: ad_copy_command(self.brief or self.prompt), Step.IMAGE: _image_arguments(self), Step.OVERLAY: lettering}
        without = {Step.TEXT} if self.text else set()
        return _standard_slip(self.kind, arguments, self.variables(job_id) | _seed_variable(self) | copy, self.tries, without)


class StepOrder(BaseModel):
    """One stop. An argument is a field of the step's command; what is not said is taken from the variables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Step
    arguments: dict[str, Any] = Field(default_factory=dict, max_length=64)
    gate: str | None = Field(None, max_length=64, description="A boolean field of the step's result: the job ends here when it is false.")

    @model_validator(mode="after")
    def check_step(self) -> Self:
        if self.step not in COMMANDS:
            raise ValueError(f"no job may stop at {self.step}; the steps are {', '.join(sorted(COMMANDS))}")
        strict_model(COMMANDS[self.step], without=("slip",), optional=True).model_validate(self.arguments)
        result = RESULTS[self.step].model_fields
        if self.gate is not None and (self.gate not in result or result[self.gate].annotation is not bool):
            gates = [name for name, field in result.items() if field.annotation is bool]
            raise ValueError(f"{self.step} has no gate {self.gate!r}; it has {', '.join(gates) or 'none'}")
        return self


class Itinerary(JsonSafe):
    """A way of one's own: steps with arguments. Each result's fields become variables, from which the next command is built by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [ITINERARY_EXAMPLE]})

    kind: Literal["itinerary"]
    stops: list[StepOrder] = Field(min_length=1, max_length=32)
    variables: dict[str, Any] = Field(default_factory=dict, max_length=64)
    answer: list[str] = Field(default_factory=list, max_length=64, description="Variables that stand in the result beside the last stop's.")
    tenant: TenantName | None = None

    @model_validator(mode="after")
    def check_first_command(self) -> Self:
        """The first command must be whole already."""
        first = self.stops[0]
        fields = COMMANDS[first.step].model_fields
        known = {name: value for name, value in self.variables.items() if name in fields and name != "slip"}
        COMMANDS[first.step].model_validate(known | first.arguments)
        return self

    def slip(self, job_id: str) -> Slip:
        stops = [SlipStep(step=stop.step, arguments=stop.arguments, gate=stop.gate) for stop in self.stops]
        return Slip(itinerary=stops, variables=self.variables, answer=self.answer)


JobOrder = Annotated[ImageOrder | Ad | Itinerary, Field(discriminator="kind")]


def _image_arguments(order: Any) -> dict[str, Any]:
    """The picture's fields, as arguments: `prompt` would mean something else to another stop. The seed may change on the way."""
    fields: dict[str, Any] = order.model_dump(mode="json", exclude_unset=True, include=set(Image.model_fields) - {"seed"})
    return fields


def ad_copy_command(brief: str) -> dict[str, Any]:
    """What the writer is asked for: one short line, in the language of the brief."""
    behave = "You write the copy of advertisements. Answer with one short line, in the language of the brief, without quotation marks."
    return {"messages": [{"role": "system", "content": behave}, {"role": "user", "content": brief}], "max_tokens": 64}


def _seed_variable(order: Any) -> dict[str, Any]:
    return {} if order.seed is None else {"seed": order.seed}


def _standard_slip(
    kind: str, arguments: dict[Step, dict[str, Any]], variables: dict[str, Any], tries: int = 0, without: Collection[Step] = ()
) -> Slip:
    """A standard itinerary, filled in. Without a generation id there is no backend to tell."""
    table, told = ITINERARIES[kind], "generation_id" in variables
    stops = [
        stop.model_copy(update={"arguments": stop.arguments | arguments.get(Step(stop.step), {})})
        for stop in table.stops
        if (told or stop.step != Step.WEBHOOK) and stop.step not in without
    ]
    if table.goes_back_to:
        stops = _with_loop_back(stops, table.goes_back_to, tries, table.fresh)
    words = {"on_progress": table.on_progress, "on_failure": table.on_failure, "on_refusal": table.on_refusal}
    slip = Slip(itinerary=stops, variables=variables, answer=table.answer)
    return slip.model_copy(update=words) if told else slip


def _with_loop_back(stops: list[SlipStep], to: Step, tries: int, fresh: list[str]) -> list[SlipStep]:
    """From the gate back to a stop before it, so often."""
    steps = [stop.step for stop in stops]
    start, gate = steps.index(to), next(index for index, stop in enumerate(stops) if stop.gate)
    again = LoopBack(stops=stops[start : gate + 1], times=tries, fresh=fresh)
    return [*stops[:gate], stops[gate].model_copy(update={"again": again}), *stops[gate + 1 :]]
