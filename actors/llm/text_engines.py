"""Opens the text engine that the settings name: a server, a model in a process of its own, or vLLM. All actors of a worker share one."""

from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from actors.engines.language.embedded_text import open_embedded_text_engine
from actors.engines.language.requests import TextEngine, TextModelOptions
from actors.engines.remote.openai_text import open_openai_text_engine
from actors.engines.shared_resource import SetUnready, open_shared
from actors.engines.vllm.engine import VllmOptions, open_vllm_text_engine
from actors.llm.settings import DEFAULT_MODEL, TextSettings, VllmSettings
from bus.errors import PermanentError


def open_text_engine(
    settings: TextSettings, shared: dict[Hashable, Any], set_unready: SetUnready = lambda _: None
) -> AbstractAsyncContextManager[TextEngine]:
    """`set_unready` is called with the reason while the engine cannot generate, and with None when it can again."""
    return open_shared(shared, "text-engine", partial(open_engine, settings), set_unready)


def open_engine(settings: TextSettings, set_unready: SetUnready) -> AbstractAsyncContextManager[TextEngine]:
    if settings.engine == "vllm":
        return open_vllm_text_engine(build_vllm_options(settings), set_unready)
    if settings.engine == "embedded" or (settings.engine == "auto" and not settings.server_url):
        return open_embedded_text_engine(build_text_model_options(settings), set_unready)
    limits = VllmSettings()
    max_model_len = limits.max_model_len if "max_model_len" in limits.model_fields_set else None
    return open_openai_text_engine(
        settings.server_url, settings.api_key, settings.model, settings.patience_seconds, max_model_len, settings.server_parameters
    )


def build_vllm_options(settings: TextSettings) -> VllmOptions:
    if not settings.model:
        raise PermanentError("model-unnamed", "the engine `vllm` needs VLLM_MODEL: a folder or a hub id")
    return VllmOptions(settings.model, VllmSettings().engine_args(), settings.loras, settings.stall_seconds)


def build_text_model_options(settings: TextSettings) -> TextModelOptions:
    limits = VllmSettings()
    return TextModelOptions(
        model=settings.model or DEFAULT_MODEL,
        device="cuda:0" if settings.device == "cuda" else settings.device,
        max_model_len=limits.max_model_len,
        max_rows=limits.max_num_seqs,
        threads=settings.threads,
        loras=settings.loras,
        prefix_cache_bytes=settings.prefix_cache_bytes,
        stall_seconds=settings.stall_seconds,
    )
