"""The families that the vision engine serves, by the `model_type` of config.json. Only what the tests prove is in the list."""

from typing import Any

from actors.engines.language.families.family import VisionFamily
from actors.engines.language.families.llava import Llava, LlavaNext, LlavaOneVision
from actors.engines.language.families.qwen import Qwen3Vl, Qwen25Vl
from actors.engines.language.families.tiled import Gemma3, Idefics3, InternVl, SmolVlm
from actors.engines.language.requests import VlmOptions

FAMILIES: tuple[type[VisionFamily], ...] = (Llava, LlavaNext, LlavaOneVision, Qwen25Vl, Qwen3Vl, InternVl, Gemma3, Idefics3, SmolVlm)
BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}
MAX_TYPE_CHARS = 100
"""Of an unknown type, in an error."""


def find_family(options: VlmOptions) -> type[VisionFamily]:
    """The family of a folder or a hub id; only config.json is read. Raises ValueError with the type that is not served, and what
    transformers raises for a file that cannot be had.
    """
    from transformers import PreTrainedConfig

    content, _ = PreTrainedConfig.get_config_dict(options.model, cache_dir=options.cache_dir)
    return family_of(content, options.model)


def family_of(config: dict[str, Any], source: str) -> type[VisionFamily]:
    """The family of the content of a config.json. Raises ValueError."""
    model_type = config.get("model_type")
    family = BY_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ValueError(
            f"{source}: the model_type {str(model_type)[:MAX_TYPE_CHARS]!r} in config.json is not served by the vision engine, which "
            f"serves {', '.join(BY_MODEL_TYPE)}: choose a checkpoint of one of these for VLM_MODEL, or start a server that serves "
            "this one, and set VLM_ENGINE=openai and VLM_BASE_URL"
        )
    return family
