"""Checkpoints of the full size with random FP16 weights, for benchmarks: memory and speed do not depend on the values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engines.diffusion.tiny_stable_diffusion import byte_tokenizer, default_scheduler
from actors.engines.language.tiny_llava import IMAGE_TOKEN, llava_tokenizer

WEIGHT_RANGE = 0.02
"""Weights are uniform within ± this, so that the sums of every layer stay within FP16."""


@dataclass(frozen=True)
class LlavaSizes:
    """Dimensions of LLaVA-1.5-7B's text model and vision encoder. `image_size`, `patch_size`: pixels."""

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    vocab_size: int = 32064
    vision_hidden_size: int = 1024
    vision_intermediate_size: int = 4096
    vision_num_layers: int = 24
    vision_num_heads: int = 16
    image_size: int = 336
    patch_size: int = 14


SMALL_SIZES = LlavaSizes(64, 128, 2, 4, 320, 32, 64, 2, 4, 28, 14)
"""The same shape, for a machine without a GPU."""


def write_sd15_size(folder: Path) -> None:
    """Save a pipeline with the dimensions of Stable Diffusion 1.5 in `folder` (2 GB)."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, sample_size=512, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=byte_tokenizer(), unet=unet, scheduler=default_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)


def write_llava_7b(folder: Path, sizes: LlavaSizes | None = None) -> None:
    """Save model and processor in `folder` (14 GB). The weights are allocated empty and filled once."""
    import torch
    from transformers import LlavaForConditionalGeneration

    sizes, tokenizer = sizes or LlavaSizes(), llava_tokenizer()
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(_config(tokenizer, sizes)).to(torch.float16)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-WEIGHT_RANGE, WEIGHT_RANGE, generator=generator)
    model.save_pretrained(folder, safe_serialization=True)
    _processor(tokenizer, sizes).save_pretrained(folder)


def _config(tokenizer: Any, sizes: LlavaSizes) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=sizes.vision_hidden_size, intermediate_size=sizes.vision_intermediate_size,
            num_hidden_layers=sizes.vision_num_layers, num_attention_heads=sizes.vision_num_heads,
            image_size=sizes.image_size, patch_size=sizes.patch_size, projection_dim=768,
        ),
        text_config=LlamaConfig(
            hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size,
            num_hidden_layers=sizes.num_layers, num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_heads, vocab_size=sizes.vocab_size, max_position_embeddings=4096,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_select_strategy="default", vision_feature_layer=-2,
    )  # fmt: skip


def _processor(tokenizer: Any, sizes: LlavaSizes) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    shapes = {"size": {"shortest_edge": sizes.image_size}, "crop_size": {"height": sizes.image_size, "width": sizes.image_size}}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**shapes), tokenizer=tokenizer, patch_size=sizes.patch_size,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, image_token=IMAGE_TOKEN,
    )  # fmt: skip
