"""Opens the text engine that the settings name: an OpenAI-compatible server or vLLM in this process. All actors of a worker share one."""

from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from actors.engines.language.requests import TextEngine
from actors.engines.remote.openai_text import open_openai_text_engine
from actors.engines.shared_resource import SetUnready, open_shared
from actors.engines.vllm.engine import VllmOptions, open_vllm_text_engine
from actors.llm.settings import TextSettings, VllmSettings
from bus.errors import PermanentError


def open_text_engine(
    settings: TextSettings, shared: dict[Hashable, Any], set_unready: SetUnready = lambda _: None
) -> AbstractAsyncContextManager[TextEngine]:
    """`set_unready` is called with the reason while the engine cannot generate, and with None when it can again."""
    return open_shared(shared, "text-engine", partial(open_engine, settings), set_unready)


def open_engine(settings: TextSettings, set_unready: SetUnready) -> AbstractAsyncContextManager[TextEngine]:
    if settings.engine == "vllm":
        return open_vllm_text_engine(build_vllm_options(settings), set_unready)
    return open_openai_text_engine(settings.server_url, settings.api_key, settings.model, settings.patience_seconds)


def build_vllm_options(settings: TextSettings) -> VllmOptions:
    if not settings.model:
        raise PermanentError("model-unnamed", "the engine `vllm` needs VLLM_MODEL: a folder or a hub id")
    return VllmOptions(settings.model, VllmSettings().engine_args(), settings.loras, settings.stall_seconds)
