"""Loads an embedding model of a proven family, and what its folder says about pooling and length.

A folder of sentence-transformers is read without that library: `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engines.embedding.requests import EmbeddingOptions, Pooling
from actors.engines.process.gpu import choose_device, choose_dtype
from actors.engines.process.model_cache import load_complete

ENCODER_TYPES = ("bert", "distilbert", "modernbert", "mpnet", "roberta", "xlm-roberta")
DECODER_TYPES = ("llama", "mistral", "qwen2", "qwen3")
PROVEN_TYPES = (*ENCODER_TYPES, *DECODER_TYPES)
"""Their vectors alone and in a batch were shown to be the same, and those of sentence-transformers' own computation."""
POOLED_BY_THE_MODEL = frozenset({"bert", "mpnet", "roberta", "xlm-roberta"})
"""Their classes have a pooling layer of their own, which embeddings do not use."""
POSITIONS_BEFORE_THE_FIRST = {"roberta": 2, "xlm-roberta": 2, "mpnet": 2}
"""Of `max_position_embeddings`, those that no token has."""
KNOWN_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})
POOLING_FILE, MODULES_FILE, LENGTH_FILE = "1_Pooling/config.json", "modules.json", "sentence_bert_config.json"
POOLING_BY_FIELD: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
POOLING_BY_NAME: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
MAX_LENGTH = 1 << 20
"""A tokenizer without a limit says a number above it."""


@dataclass(frozen=True)
class LoadedEmbeddingModel:
    """`max_tokens`: of an input, no more than those of a batch. `dtype`: of the weights."""

    model: Any
    tokenizer: Any
    device: str
    pooling: Pooling
    max_tokens: int
    size: int
    dtype: str


def load_checkpoint(options: EmbeddingOptions) -> LoadedEmbeddingModel:
    """Raises ValueError for a model that is not served, before its weights are read, and what transformers raises."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    if options.threads:
        torch.set_num_threads(options.threads)
    source = options.model
    config = AutoConfig.from_pretrained(source)
    if config.model_type not in PROVEN_TYPES:
        raise ValueError(
            f"EMBEDDING_MODEL {source} is of the type {config.model_type!r}; proven are {', '.join(PROVEN_TYPES)}. "
            "Serve it with a server that has /v1/embeddings, and set EMBEDDING_SERVER_URL"
        )
    check_modules(source)
    pooling = options.pooling or read_pooling(source)
    device = choose_device(options.device)
    dtype = choose_dtype("auto", device)
    tokenizer = AutoTokenizer.from_pretrained(source)
    arguments = {"add_pooling_layer": False} if config.model_type in POOLED_BY_THE_MODEL else {}
    model = load_complete(AutoModel.from_pretrained, source, dtype=getattr(torch, dtype), **arguments).to(device).eval()
    model.config.use_cache = False  # a decoder would keep keys and values that nobody reads
    limits = (options.max_tokens, length_limit(config), read_file(source, LENGTH_FILE).get("max_seq_length"), tokenizer.model_max_length)
    known = [limit for limit in limits if limit is not None and limit <= MAX_LENGTH]
    return LoadedEmbeddingModel(
        model, tokenizer, device, pooling,
        max_tokens=min(options.batch_tokens, *known), size=config.hidden_size, dtype=dtype,
    )  # fmt: skip


def length_limit(config: Any) -> int:
    return int(config.max_position_embeddings) - POSITIONS_BEFORE_THE_FIRST.get(config.model_type, 0)


def check_modules(source: str) -> None:
    """Raises ValueError for a model with a module that is not computed here, such as a dense layer after the pooling."""
    modules = read_file(source, MODULES_FILE)
    names = [str(module.get("type", "")).rpartition(".")[2] for module in modules] if isinstance(modules, list) else []
    if unknown := [name for name in names if name not in KNOWN_MODULES]:
        raise ValueError(
            f"{source}: {MODULES_FILE} has {', '.join(unknown)}, which is not computed here: serve it with EMBEDDING_SERVER_URL"
        )


def read_pooling(source: str) -> Pooling:
    """Raises ValueError where the model's folder does not say it, or says one that is not computed here."""
    fields = read_file(source, POOLING_FILE)
    named = fields.get("pooling_mode")
    wanted = [named] if isinstance(named, str) else [name for name, value in fields.items() if name.startswith("pooling_mode_") and value]
    known = [POOLING_BY_NAME.get(name) or POOLING_BY_FIELD.get(name) for name in wanted]
    if len(known) == 1 and known[0]:
        return known[0]
    found = f"says {', '.join(map(str, wanted))}" if wanted else "is missing or says nothing"
    raise ValueError(f"{source}: {POOLING_FILE} {found}; set EMBEDDING_POOLING to mean, cls or last, as the model was trained")


def read_file(source: str, name: str) -> Any:
    """The JSON of a file of the model; {} where it is not there."""
    from transformers.utils import cached_file

    file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(file).read_text()) if file else {}
