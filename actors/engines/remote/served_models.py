"""The models of an OpenAI-compatible server, as its route `models` lists them, and the choice of one.

Many servers and proxies lack the route: where the settings name a model, that is no reason not to ask it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import structlog

from actors.engines.remote.openai_client import parse_completion, status_error
from bus.errors import PermanentError, TemporaryError

NOT_READY_STATUSES = frozenset({408, 425, 429, 502, 503, 504})
"""The server, or the proxy in front of it, has no answer yet."""

log = structlog.get_logger()


@dataclass(frozen=True)
class ServedModels:
    """The model that is used, the names of all, the context length if the server reports it, and whether the server is vLLM.

    `listed`: false where the server has no list, so that `names` has the named model alone.
    """

    model: str
    names: tuple[str, ...]
    max_model_len: int | None = None
    by_vllm: bool = False
    listed: bool = True


def read_models(response: httpx.Response, requested: str | None, *, setting: str) -> ServedModels:
    """The models in the answer of the route `models`, whatever its status.

    Raises TemporaryError while the server is not ready, and PermanentError where it has no list and the `setting` names no model.
    """
    if response.status_code in NOT_READY_STATUSES and (error := status_error(response)):
        raise error
    try:
        models = _parse_models(response)
    except (PermanentError, TemporaryError) as error:
        if not requested:
            raise _without_list(error, setting) from None
        models = []
    if not models and requested:
        log.info("server.models_unlisted", model=requested, status=response.status_code)
        return ServedModels(requested, (requested,), listed=False)
    names = [_name_of(model) for model in models]
    length = next((model.get("max_model_len") for model in models), None)
    by_vllm = any(model.get("owned_by") == "vllm" for model in models)
    return ServedModels(choose_model(requested, names), tuple(names), length if isinstance(length, int) else None, by_vllm)


def _without_list(error: Exception, setting: str) -> PermanentError | TemporaryError:
    kind = TemporaryError if isinstance(error, TemporaryError) else PermanentError
    message = f"the model server lists no models, so that {setting} must name one: {error}"
    return TemporaryError(message, code="server-failed") if kind is TemporaryError else PermanentError("server-refused", message)


def _parse_models(response: httpx.Response) -> list[dict[str, Any]]:
    """Raises PermanentError, TemporaryError for an answer that is no list of models."""
    if error := status_error(response):
        raise error
    body = response.text.lstrip()
    models: Any = response.json() if body.startswith("[") else None
    if models is None:
        parsed = parse_completion(response)
        models = parsed.get("data") or parsed.get("models") or []
    entries = [{"id": model} if isinstance(model, str) else model for model in models if isinstance(model, str | dict)]
    return [entry for entry in entries if _name_of(entry)]


def _name_of(model: dict[str, Any]) -> str:
    return str(model.get("id") or model.get("name") or model.get("model") or "")


def choose_model(requested: str | None, served: list[str]) -> str:
    """`requested` if the server has it, else the first that it serves. Raises TemporaryError when it serves none."""
    if not served:
        raise TemporaryError("the server serves no model yet", code="server-not-ready")
    if requested and (name := find_model(requested, served)):
        return name
    if requested:
        log.warning("server.other_model", requested=requested, used=served[0])
    return served[0]


def find_model(requested: str, served: Sequence[str]) -> str | None:
    """The name by which the server has the model: also in a folder, or with the tag `latest`."""
    if requested in served:
        return requested
    return next((name for name in served if name == f"{requested}:latest" or name.endswith(f"/{requested}")), None)
