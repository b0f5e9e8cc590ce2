"""Tiny embedding models with random weights in the real classes and file formats, as folders of sentence-transformers."""

import json
from pathlib import Path
from typing import Any

from actors.engines.language.tiny_llama import byte_tokenizer

SIZE, LENGTH = 32, 64
SMALL: dict[str, Any] = {"hidden_size": SIZE, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
DECODER: dict[str, Any] = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": LENGTH, "tie_word_embeddings": False}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", SMALL | {"max_position_embeddings": LENGTH}),
    "distilbert": ("DistilBertConfig", {"dim": SIZE, "hidden_dim": 48, "n_layers": 2, "n_heads": 2, "max_position_embeddings": LENGTH}),
    "modernbert": ("ModernBertConfig", SMALL | {"max_position_embeddings": LENGTH, "global_attn_every_n_layers": 2, "local_attention": 8}),
    "mpnet": ("MPNetConfig", SMALL | {"max_position_embeddings": LENGTH + 2}),
    "roberta": ("RobertaConfig", SMALL | {"max_position_embeddings": LENGTH + 2}),
    "xlm-roberta": ("XLMRobertaConfig", SMALL | {"max_position_embeddings": LENGTH + 2}),
    "llama": ("LlamaConfig", DECODER),
    "mistral": ("MistralConfig", DECODER),
    "qwen2": ("Qwen2Config", DECODER),
    "qwen3": ("Qwen3Config", DECODER | {"head_dim": 16}),
}
FIELDS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}


def write_tiny_encoder(folder: Path, model_type: str = "bert", pooling: str | None = "mean", **config_fields: Any) -> Path:
    """Save a model with its tokenizer, and its pooling where there is one."""
    import torch
    import transformers

    tokenizer = byte_tokenizer("<|turn|>")
    name, fields = CONFIGS[model_type]
    special = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    special |= {"cls_token_id": 1, "sep_token_id": 2} if model_type == "modernbert" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(getattr(transformers, name)(**fields | special | config_fields)).eval()
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    if pooling:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": SIZE, FIELDS[pooling]: True}))
    return folder
