"""OpenAI's `POST /v1/moderations`: one command to the moderate step; its findings by OpenAI's categories.

A category that nothing measures here is false with the score 0, and is applied to no type of input. The findings that have no category of
OpenAI's flag a result as well; each result lists all of its findings, an extension.
"""

from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, JsonValue

from contracts.moderate import MAX_TEXT_CHARS, CheckerName, Finding, ModerateDone
from contracts.wire import Step
from gateway.openai.chat_messages import ImageUrl, to_picture
from gateway.openai.errors import ERROR_RESPONSES, NO_RETRY, OpenAIRoute
from gateway.problems import HttpProblem
from gateway.services import services_of
from gateway.strict_model import HttpModel

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

UPLOAD_PATHS = frozenset({"/v1/moderations"})
MODEL = "omni-moderation-latest"
MODERATION_EXAMPLE: dict[str, JsonValue] = {"model": MODEL, "input": "a text"}
CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
)
"""OpenAI's. A category of the word list with one of these names is that category."""
PICTURE_CATEGORY = "sexual"
"""What NudeNet and the safety checkers look for."""
InputType = Literal["text", "image"]
InputText = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]


class TextInput(HttpModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: InputText


class ImageInput(HttpModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["image_url"]
    image_url: ImageUrl


InputTexts = Annotated[list[InputText], Field(min_length=1, max_length=64)]
InputParts = Annotated[list[Annotated[TextInput | ImageInput, Field(discriminator="type")]], Field(min_length=1, max_length=16)]


class ModerationRequest(HttpModel):
    """What OpenAI's clients send. A list of texts has one result for each, a list of parts one for all of them."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [MODERATION_EXAMPLE]})

    input: InputText | InputTexts | InputParts
    model: str | None = Field(None, max_length=255, description="Any name: the checkers are those of the worker. The response repeats it.")

    @property
    def texts(self) -> list[str]:
        if isinstance(self.input, str):
            return [self.input]
        return [part if isinstance(part, str) else part.text for part in self.input if not isinstance(part, ImageInput)]

    @property
    def is_of_parts(self) -> bool:
        return not isinstance(self.input, str) and not isinstance(self.input[0], str)

    def check_text_length(self, limit: int) -> None:
        """A longer body is allowed for pictures only. Raises HttpProblem(413)."""
        if (length := sum(map(len, self.texts))) > limit:
            raise HttpProblem(413, "message-too-large", f"the texts have {length} characters, {limit} are allowed", param="input")

    async def command(self, request: Request) -> dict[str, Any]:
        """The moderate step's command. Pictures of the body are stored. Raises HttpProblem(400, 413, 501, 503)."""
        fields: dict[str, list[Any]] = {"texts": self.texts, "images": [], "image_urls": []}
        for index, part in enumerate([] if isinstance(self.input, str) else self.input):
            if isinstance(part, ImageInput):
                picture = await to_picture(request, f"input.{index}.image_url.url", part.image_url)
                fields["image_urls" if "url" in picture else "images"].extend(picture.values())
        return {name: values for name, values in fields.items() if values}


class ModerationResult(HttpModel):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[InputType]]
    findings: list[Finding] = Field(description="An extension: what each checker found, also in categories that OpenAI does not have.")


class Moderation(HttpModel):
    id: str = Field(examples=["modr-0c8b1f3a"])
    model: str
    results: list[ModerationResult]


@router.post("/moderations", responses=ERROR_RESPONSES)
async def moderate(request: Request, body: ModerationRequest) -> Moderation:
    """Check texts and pictures. 503 while no worker serves the step `moderate`, 501 when it has no checker for an input."""
    services = services_of(request)
    body.check_text_length(services.settings.max_body_bytes)
    if not await services.commands.requests.has_consumer(Step.MODERATE.value):
        raise HttpProblem(503, "moderation-unavailable", "no worker serves the step `moderate`: start `atelier run moderate`", NO_RETRY)
    done = ModerateDone.model_validate(await services.commands.call(request, Step.MODERATE.value, await body.command(request)))
    groups = (
        [done.moderation]
        if body.is_of_parts
        else [[finding for finding in done.moderation if finding.index == index] for index in range(len(body.texts))]
    )
    applied = applied_input_types(done.checked_by)
    return Moderation(id=f"modr-{uuid4().hex}", model=body.model or MODEL, results=[to_result(findings, applied) for findings in groups])


def applied_input_types(checked_by: dict[str, list[str]]) -> dict[str, set[InputType]]:
    """By category, the types of input in which a checker looked for it."""
    applied: dict[str, set[InputType]] = {category: set() for category in CATEGORIES}
    for checker, labels in checked_by.items():
        for label in labels:
            if (category := category_of(checker, label)) is not None:
                applied[category].add("text" if checker == "word-list" else "image")
    return applied


def category_of(checker: CheckerName | str, label: str) -> str | None:
    """OpenAI's category of a label; None for a category of the word list that OpenAI does not have."""
    if checker != "word-list":
        return PICTURE_CATEGORY
    return label if label in CATEGORIES else None


def to_result(findings: list[Finding], applied: dict[str, set[InputType]]) -> ModerationResult:
    """The highest score of each category; it is true when one of its findings is flagged."""
    found = [(category_of(finding.checker, finding.label), finding) for finding in findings]
    return ModerationResult(
        flagged=any(finding.flagged for finding in findings),
        categories={name: any(finding.flagged for category, finding in found if category == name) for name in CATEGORIES},
        category_scores={name: max((finding.score for category, finding in found if category == name), default=0.0) for name in CATEGORIES},
        category_applied_input_types={name: sorted(types, reverse=True) for name, types in applied.items()},
        findings=findings,
    )
