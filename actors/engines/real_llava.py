"""LLaVA-1.5-7B's own dimensions with random weights in FP16: memory and speed do not depend on the values. Writes 14 GB."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engines.tiny_llava import IMAGE, byte_tokenizer

SPREAD = 0.02
"""Of the weights: every layer's sums stay within FP16."""


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of the text model and of the picture's encoder. `side`, `patch`: pixels."""

    hidden: int = 4096
    inner: int = 11008
    layers: int = 32
    heads: int = 32
    vocabulary: int = 32064
    seen_hidden: int = 1024
    seen_inner: int = 4096
    seen_layers: int = 24
    seen_heads: int = 16
    side: int = 336
    patch: int = 14


SMALL = Sizes(64, 128, 2, 4, 320, 32, 64, 2, 4, 28, 14)
"""The same shape, for a machine without a GPU."""


def write_real_llava(folder: Path, sizes: Sizes | None = None) -> None:
    """Save model and processor. Nothing is initialized twice: the weights are made empty and then filled."""
    import torch
    from transformers import LlavaForConditionalGeneration

    sizes, tokenizer = sizes or Sizes(), byte_tokenizer()
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(_config(tokenizer, sizes)).to(torch.float16)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-SPREAD, SPREAD, generator=generator)
    model.save_pretrained(folder, safe_serialization=True)
    _processor(tokenizer, sizes).save_pretrained(folder)


def _config(tokenizer: Any, sizes: Sizes) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=sizes.seen_hidden, intermediate_size=sizes.seen_inner, num_hidden_layers=sizes.seen_layers,
            num_attention_heads=sizes.seen_heads, image_size=sizes.side, patch_size=sizes.patch, projection_dim=768,
        ),
        text_config=LlamaConfig(
            hidden_size=sizes.hidden, intermediate_size=sizes.inner, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads, vocab_size=sizes.vocabulary, max_position_embeddings=4096,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_select_strategy="default", vision_feature_layer=-2,
    )  # fmt: skip


def _processor(tokenizer: Any, sizes: Sizes) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    shapes = {"size": {"shortest_edge": sizes.side}, "crop_size": {"height": sizes.side, "width": sizes.side}}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**shapes), tokenizer=tokenizer, patch_size=sizes.patch,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, image_token=IMAGE,
    )  # fmt: skip
