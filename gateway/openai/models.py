"""`/v1/models`: the language model that is served, its LoRA adapters, and `image` where pictures are drawn."""

from fastapi import APIRouter, Request
from pydantic import BaseModel

from contracts.text import TextStatus
from contracts.wire import Step
from gateway.openai.errors import ERROR_RESPONSES, OpenAIRoute
from gateway.openai.images import DEFAULT_IMAGE_MODEL as PICTURES
from gateway.problems import HttpProblem
from gateway.text.status import TextStatusCache

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

DEFAULT_TEXT_MODEL = "text"
"""The name under which a client may mean whatever language model is served."""
CREATED = 1_760_000_000
"""When a model was made is not known; clients want a number."""


class Model(BaseModel):
    id: str
    object: str = "model"
    created: int = CREATED
    owned_by: str = "atelier"
    parent: str | None = None
    max_model_len: int | None = None


class Models(BaseModel):
    object: str = "list"
    data: list[Model]


@router.get("/models", responses=ERROR_RESPONSES, response_model_exclude_none=True)
async def list_models(request: Request) -> Models:
    """What may be named as `model` now."""
    return Models(data=await served_models(request))


@router.get("/models/{model:path}", responses=ERROR_RESPONSES, response_model_exclude_none=True)
async def get_model(request: Request, model: str) -> Model:
    found = next((known for known in await served_models(request) if known.id == model), None)
    if found is None:
        raise model_not_found(model, [known.id for known in await served_models(request)])
    return found


async def served_models(request: Request) -> list[Model]:
    status = await current_text_status(request)
    pictures = [Model(id=PICTURES)] if await request.app.state.requests.has_consumer(Step.IMAGE.value) else []
    if status is None:
        return pictures
    adapters = [Model(id=name, parent=status.model_name) for name in status.lora_adapters]
    return [Model(id=status.model_name, max_model_len=status.max_model_len), *adapters, *pictures]


async def lora_adapter_of(request: Request, model: str) -> str | None:
    """The LoRA adapter that a model's name means; None for the model itself. Raises Refused(404); not while nobody knows."""
    status = await current_text_status(request)
    if status is None or model in (DEFAULT_TEXT_MODEL, status.model_name):
        return None
    if model in status.lora_adapters:
        return model
    raise model_not_found(model, [status.model_name, *status.lora_adapters])


async def current_text_status(request: Request) -> TextStatus | None:
    statuses: TextStatusCache = request.app.state.text_status
    return (await statuses.latest()).status


def model_not_found(model: str, known: list[str]) -> HttpProblem:
    return HttpProblem(
        404, "model-unknown", f"The model {model!r} is not served; there are: {', '.join(known) or 'none now'}.", param="model"
    )
