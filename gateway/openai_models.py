"""`/v1/models`: the language model that is served, its LoRA adapters, and `image` where pictures are drawn."""

from fastapi import APIRouter, Request
from pydantic import BaseModel

from contracts.text import TextStatus
from contracts.wire import Step
from gateway.openai_errors import ERRORS, OpenAIRoute
from gateway.openai_images import MODEL as PICTURES
from gateway.problems import Refused
from gateway.text_status import TextStatuses

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

WORDS = "text"
"""The name under which a client may mean whatever language model is served."""
SINCE = 1_760_000_000
"""When a model was made is not known; clients want a number."""


class Model(BaseModel):
    id: str
    object: str = "model"
    created: int = SINCE
    owned_by: str = "atelier"
    parent: str | None = None
    max_model_len: int | None = None


class Models(BaseModel):
    object: str = "list"
    data: list[Model]


@router.get("/models", responses=ERRORS, response_model_exclude_none=True)
async def list_models(request: Request) -> Models:
    """What may be named as `model` now."""
    return Models(data=await served(request))


@router.get("/models/{model:path}", responses=ERRORS, response_model_exclude_none=True)
async def get_model(request: Request, model: str) -> Model:
    found = next((known for known in await served(request) if known.id == model), None)
    if found is None:
        raise unknown(model, [known.id for known in await served(request)])
    return found


async def served(request: Request) -> list[Model]:
    status = await status_of(request)
    pictures = [Model(id=PICTURES)] if await request.app.state.requests.served(Step.IMAGE.value) else []
    if status is None:
        return pictures
    adapters = [Model(id=name, parent=status.model_name) for name in status.lora_adapters]
    return [Model(id=status.model_name, max_model_len=status.max_model_len), *adapters, *pictures]


async def adapter_of(request: Request, model: str) -> str | None:
    """The LoRA adapter that a model's name means; None for the model itself. Raises Refused(404); not while nobody knows."""
    status = await status_of(request)
    if status is None or model in (WORDS, status.model_name):
        return None
    if model in status.lora_adapters:
        return model
    raise unknown(model, [status.model_name, *status.lora_adapters])


async def status_of(request: Request) -> TextStatus | None:
    statuses: TextStatuses = request.app.state.text_statuses
    return (await statuses.latest()).status


def unknown(model: str, known: list[str]) -> Refused:
    return Refused(404, "model-unknown", f"The model {model!r} is not served; there are: {', '.join(known) or 'none now'}.", param="model")
