"""`/v1/models`: the served language model, its LoRA adapters, the embedding model, and `image` where an image actor consumes."""

from fastapi import APIRouter, Request

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from contracts.embed import EmbedStatus
from contracts.text import TextStatus
from contracts.wire import Step
from gateway.openai.errors import ERROR_RESPONSES, OpenAIRoute
from gateway.openai.image_requests import DEFAULT_IMAGE_MODEL
from gateway.problems import HttpProblem
from gateway.services import services_of
from gateway.strict_model import HttpModel

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

DEFAULT_TEXT_MODEL = "text"
"""The name by which a client may request whatever language model is served."""
EMBED_STATUS_STEP = "embed.status"
CREATED = 1_760_000_000
"""Clients need a number; the real time is unknown."""


class Model(HttpModel):
    id: str
    object: str = "model"
    created: int = CREATED
    owned_by: str = "atelier"
    parent: str | None = None
    max_model_len: int | None = None


class Models(HttpModel):
    object: str = "list"
    data: list[Model]


@router.get("/models", responses=ERROR_RESPONSES, response_model_exclude_none=True)
async def list_models(request: Request) -> Models:
    """The names that `model` may have at present."""
    return Models(data=await served_models(request))


@router.get("/models/{model:path}", responses=ERROR_RESPONSES, response_model_exclude_none=True)
async def get_model(request: Request, model: str) -> Model:
    models = {served.id: served for served in await served_models(request)}
    if model not in models:
        raise model_not_found(model, list(models))
    return models[model]


async def served_models(request: Request) -> list[Model]:
    status = await current_text_status(request)
    has_image_actor = await services_of(request).commands.requests.has_consumer(Step.IMAGE.value)
    others = [*await embedding_models(request), *([Model(id=DEFAULT_IMAGE_MODEL)] if has_image_actor else [])]
    if status is None:
        return others
    adapters = [Model(id=name, parent=status.model_name) for name in status.lora_adapters]
    return [Model(id=status.model_name, max_model_len=status.max_model_len), *adapters, *others]


async def embedding_models(request: Request) -> list[Model]:
    """The embedding model; none while its worker does not run, loads it, or has none."""
    commands = services_of(request).commands
    if not await commands.requests.has_consumer(EMBED_STATUS_STEP):
        return []
    try:
        status = EmbedStatus.model_validate(await commands.query(EMBED_STATUS_STEP))
    except (ReplyFault, ReplyTimeout):
        return []
    return [Model(id=status.model_name, max_model_len=status.max_model_len)]


async def lora_adapter_of(request: Request, model: str) -> str | None:
    """The LoRA adapter with the name; None for the model itself, and while the status is unknown. Raises HttpProblem(404)."""
    status = await current_text_status(request)
    if status is None or model in (DEFAULT_TEXT_MODEL, status.model_name):
        return None
    if model in status.lora_adapters:
        return model
    raise model_not_found(model, [status.model_name, *status.lora_adapters])


async def current_text_status(request: Request) -> TextStatus | None:
    return (await services_of(request).text_status.latest()).status


def model_not_found(model: str, served: list[str]) -> HttpProblem:
    detail = f"The model {model!r} is not served; served are: {', '.join(served) or 'none at present'}."
    return HttpProblem(404, "model-unknown", detail, param="model")
