"""The causal language models that the text engine serves: those whose answers in a mixed batch were shown to be those of `generate`.
And where the weights of one are.
"""

from pathlib import Path
from typing import Any

CAUSAL_TYPES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3")
EAGER_TYPES = frozenset({"gemma2"})
"""Their attention is capped, which torch's own does not do."""
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
"""Position encodings that change for a whole batch as soon as one of its rows is longer than `original_max_position_embeddings`."""


def choose_attention(config: Any, source: str) -> str:
    """The implementation of the attention. Raises ValueError for a model that is not among the proven ones, before its weights are read."""
    if config.model_type not in CAUSAL_TYPES:
        raise ValueError(
            f"{source} is a model of the type {config.model_type!r}, which is not proven in the embedded engine; "
            f"it serves {', '.join(CAUSAL_TYPES)}. Serve it with vLLM (VLLM_SERVER_URL, or TEXT_ENGINE=vllm)"
        )
    return "eager" if config.model_type in EAGER_TYPES else "sdpa"


def batched_context_length(config: Any, length: int) -> int:
    """The most tokens of a row, so that no row changes the positions of others."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in LENGTH_DEPENDENT_ROPE:
        return length
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None) or length
    return min(length, int(original))


def locate_weights(model: str) -> tuple[str, dict[str, str]]:
    """The folder or hub id, and the arguments that its format needs: a `.gguf` file, or a folder with one and no config.json."""
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir() and not (path / "config.json").exists() and len(files := list(path.glob("*.gguf"))) == 1:
        return str(path), {"gguf_file": files[0].name}
    return (str(path) if path.is_dir() else model), {}


def model_name(model: str) -> str:
    """The name in answers: that of the folder, or the hub id."""
    path = Path(model).expanduser()
    return path.name.removesuffix(".gguf") if path.exists() else model
