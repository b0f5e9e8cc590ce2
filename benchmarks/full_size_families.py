"""Families of image models at their real sizes with random weights, made in the memory of the device: nothing is downloaded or written.

Tokenizers and scheduler are those of the tiny checkpoints. The values do not matter for memory and speed.
"""

from collections.abc import Callable
from typing import Any

from actors.engines.diffusion.tiny_families import TINY_FAMILIES

SIDES = {"Stable Diffusion 1.5": (512, 1024), "Stable Diffusion XL": (512, 1024), "Flux.1": (512, 1024)}
"""Name → pixels of the pictures that are measured."""


def build_family(name: str, device: str, dtype: Any, *, tiny: bool) -> Any:
    """A family as the engine uses it. `tiny`: with the parts of its tiny checkpoint, for a machine without a GPU."""
    import torch

    from actors.engines.diffusion.families.flux import Flux
    from actors.engines.diffusion.families.stable_diffusion import StableDiffusion
    from actors.engines.diffusion.families.stable_diffusion_xl import StableDiffusionXL

    kinds: dict[str, tuple[Any, str, Callable[[], dict[str, Any]]]] = {
        "Stable Diffusion 1.5": (StableDiffusion, "tiny-sd15", stable_diffusion_parts),
        "Stable Diffusion XL": (StableDiffusionXL, "tiny-sdxl", stable_diffusion_xl_parts),
        "Flux.1": (Flux, "tiny-flux", flux_parts),
    }
    kind, checkpoint, make_parts = kinds[name]
    pipeline = TINY_FAMILIES[checkpoint]()
    if not tiny:
        options = {"requires_safety_checker": False} if kind is StableDiffusion else {}
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                parts = make_parts()
        finally:
            torch.set_default_dtype(before)
        pipeline = type(pipeline)(**pipeline.components | parts | options)
    family = kind(pipeline.to(device, dtype))
    pipeline.vae.to(kind.vae_dtype(pipeline.vae.config, dtype))
    family.check()
    return family


def stable_diffusion_parts() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    return {
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "vae": vae(4, scaling_factor=0.18215),
        "text_encoder": clip_large(),
    }


def stable_diffusion_xl_parts() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    unet = UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    large = CLIPTextConfig(
        vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280,
        hidden_act="gelu", bos_token_id=512, eos_token_id=513, pad_token_id=0,
    )  # fmt: skip
    encoders = {"text_encoder": clip_large(), "text_encoder_2": CLIPTextModelWithProjection(large)}
    return {"unet": unet, "vae": vae(4, scaling_factor=0.13025), **encoders}


def flux_parts() -> dict[str, Any]:
    """As Flux.1 dev: 12 billion parameters, and an encoder with 4.8 billion."""
    from diffusers import FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    t5 = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    return {
        "transformer": FluxTransformer2DModel(guidance_embeds=True),
        "vae": vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": clip_large(),
        "text_encoder_2": T5EncoderModel(t5),
    }


def clip_large() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, bos_token_id=512,
        eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    return CLIPTextModel(config)


def vae(channels: int, **config: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=channels, block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **config,
    )  # fmt: skip
