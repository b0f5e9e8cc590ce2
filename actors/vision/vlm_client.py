"""Clients of a vision-language model: a local engine in its own process, or a server. Actors with the same settings share one."""

from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Protocol

import structlog

from actors.engines.language.requests import VlmRequest, VlmResponse
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.remote.openai_vlm import OpenAiVlm, open_openai_vlm
from actors.engines.settings import ExecutorSettings
from actors.engines.shared_resource import SetUnready, open_shared
from actors.vision.model_files import ensure_local_model
from actors.vision.settings import VlmSettings
from bus.actor import ObservableEngine
from bus.observability.gen_ai import ModelCall, trace_model_call

MAX_CONCURRENT_REQUESTS = 64
"""Requests in the engine at once, of all actors together. Only an upper bound: the actors' prefetch counts keep below it."""

log = structlog.get_logger()


class VlmClient(Protocol):
    async def generate(self, request: VlmRequest, *, tenant: str | None, deadline: datetime | None) -> VlmResponse:
        """Raises PermanentError, TemporaryError, EngineCrashed."""
        ...

    async def ready(self) -> str:
        """Wait until requests can be served; return the model's name."""
        ...

    @property
    def loaded(self) -> bool:
        """False: the model is loaded at the first request, and there was none."""
        ...

    @property
    def engine(self) -> ObservableEngine: ...


@dataclass(frozen=True)
class LocalVlmClient:
    """The transformers engine in its process. `model`: the name that its answers have."""

    executor: Executor
    model: str

    async def generate(self, request: VlmRequest, *, tenant: str | None, deadline: datetime | None) -> VlmResponse:
        with trace_model_call("generate_content", "atelier", self.model, **span_attributes(request)) as call:
            execution = await self.executor.run(request, tenant=tenant or "", deadline=deadline)
            response: VlmResponse = replace(execution.result, device_seconds=execution.device_seconds)
            record_response(call, response)
        return response

    async def ready(self) -> str:
        """A model that is loaded at the first request counts as ready before it."""
        if not self.loaded:
            return self.model
        await self.executor.ready()
        return self.model

    @property
    def loaded(self) -> bool:
        return self.executor.is_wanted

    @property
    def engine(self) -> ObservableEngine:
        return self.executor


@dataclass(frozen=True)
class RemoteVlmClient:
    """An OpenAI-compatible server that accepts images."""

    server: OpenAiVlm

    async def generate(self, request: VlmRequest, *, tenant: str | None, deadline: datetime | None) -> VlmResponse:
        with trace_model_call("chat", "openai", None, **span_attributes(request)) as call:
            response = await self.server.generate(request, deadline=deadline)
            record_response(call, response)
        return response

    async def ready(self) -> str:
        """Asks the server each time. Raises TemporaryError, PermanentError while it does not answer."""
        await self.server.check()
        return await self.server.served_model()

    @property
    def loaded(self) -> bool:
        return True

    @property
    def engine(self) -> ObservableEngine:
        return self.server


def span_attributes(request: VlmRequest) -> dict[str, Any]:
    return {"output_type": "json" if request.schema else "text", "max_tokens": request.max_new_tokens}


def record_response(call: ModelCall, response: VlmResponse) -> None:
    call.record(
        response_model=response.model,
        finish_reasons=[response.finish_reason],
        usage_input_tokens=response.prompt_tokens,
        usage_output_tokens=response.completion_tokens,
        device_seconds=response.device_seconds,
    )


def open_vlm_client(
    settings: VlmSettings, shared: dict[Hashable, Any], set_unready: SetUnready = lambda _: None
) -> AbstractAsyncContextManager[VlmClient]:
    """`set_unready` is called with the reason while requests cannot be served, and with None when they can again."""
    return open_shared(shared, settings, partial(open_client, settings), set_unready)


@asynccontextmanager
async def open_client(settings: VlmSettings, set_unready: SetUnready) -> AsyncIterator[VlmClient]:
    if settings.engine == "openai":
        async with open_openai_vlm(
            settings.base_url, settings.api_key, settings.model, settings.request_seconds, settings.server_parameters
        ) as server:
            yield RemoteVlmClient(server)
        return
    options = settings.build_options(await ensure_local_model(settings))
    spec = EngineSpec("actors.engines.language.vision_model:open_engine", options)
    async with open_executor(
        spec,
        ExecutorSettings(),
        max_in_flight=MAX_CONCURRENT_REQUESTS,
        capacity=settings.max_rows,
        set_unready=set_unready,
        lazy=not settings.warm,
    ) as executor:
        if not settings.warm:
            log.info("model.deferred", message=f"{options.model} is loaded at the first request", model=options.model)
        yield LocalVlmClient(executor, options.model)
