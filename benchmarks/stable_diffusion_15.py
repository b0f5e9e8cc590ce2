"""A tiny Stable Diffusion with random weights and tiny LoRAs, in the real classes and the real file formats.

Writes a pipeline folder (about 0.3 MB) and safetensors files. The VAE scales by 8, so sizes are those of the real model.
"""

from pathlib import Path

from actors.engines.diffusion.tiny_stable_diffusion import byte_tokenizer, default_scheduler


def write_sd15_size(folder: Path) -> None:
    """Save a pipeline of Stable Diffusion 1.5's own dimensions, random, in FP16: speed and memory do not depend on the values. 2 GB."""
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
