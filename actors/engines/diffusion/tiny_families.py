"""Tiny checkpoints of every model family with random weights, in the real classes and the real file formats.

Each is a folder of 0.2 to 2 MB. VAEs scale by 8 and tokenizers have the lengths of the real ones, so sizes and prompts behave as there.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.engines.diffusion.tiny_stable_diffusion import byte_alphabet, byte_tokenizer

TEXT_WIDTH = 32
"""Width of the text encoders but T5."""
T5_WIDTH = 64
FLUX_VAE = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
SD3_VAE = FLUX_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def write_tiny_family(name: str, folder: Path, *, seed: int = 0) -> None:
    """Save the checkpoint of that name from `TINY_FAMILIES` or `TINY_CONTROLNETS` in `folder`."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (TINY_FAMILIES | TINY_CONTROLNETS)[name]()
        parts = [model] if isinstance(model, torch.nn.Module) else [part for _, part in sorted(model.components.items())]
        for number, part in enumerate(parts):
            if isinstance(part, torch.nn.Module):
                randomize_weights(part.eval(), seed + number)
    model.save_pretrained(folder, safe_serialization=True)


def randomize_weights(module: Any, seed: int) -> None:
    """Random values for every weight that keep the size of activations: with the usual initial values, some of them zero, the prompt
    and a LoRA would hardly show in the picture.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(weight[0].numel()))
            elif "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


def _sd15(kind: str = "StableDiffusionPipeline", channels: int = 4) -> Any:
    import diffusers

    return getattr(diffusers, kind)(
        vae=_vae(4, scaling_factor=0.18215), text_encoder=_clip(), tokenizer=byte_tokenizer(), unet=_sd15_unet(channels),
        scheduler=_noise_schedule("PNDMScheduler", skip_prk_steps=True), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _sd2() -> Any:
    import diffusers

    return diffusers.StableDiffusionPipeline(
        vae=_vae(4, scaling_factor=0.18215), text_encoder=_clip(hidden_act="gelu"), tokenizer=_second_tokenizer(),
        unet=_unet(TEXT_WIDTH, use_linear_projection=True),
        scheduler=_noise_schedule("DDIMScheduler", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl(kind: str = "StableDiffusionXLPipeline", channels: int = 4) -> Any:
    import diffusers

    return getattr(diffusers, kind)(
        vae=_vae(4, scaling_factor=0.13025), text_encoder=_clip(), text_encoder_2=_clip(projection=True, hidden_act="gelu"),
        tokenizer=byte_tokenizer(), tokenizer_2=_second_tokenizer(), unet=_sdxl_unet(channels),
        scheduler=_noise_schedule("EulerDiscreteScheduler"), add_watermarker=False,
    )  # fmt: skip


def _sd3() -> Any:
    """As SD3.5: the first block has two attentions, queries and keys are normed. The position table suffices for 1024 pixels."""
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=T5_WIDTH, caption_projection_dim=32, pooled_projection_dim=2 * TEXT_WIDTH, pos_embed_max_size=64,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=_flow_schedule(shift=3.0), vae=_vae(16, **SD3_VAE),
        text_encoder=_clip(projection=True), tokenizer=byte_tokenizer(), text_encoder_2=_clip(projection=True, hidden_act="gelu"),
        tokenizer_2=_second_tokenizer(), text_encoder_3=_t5(), tokenizer_3=_t5_tokenizer(),
    )  # fmt: skip


def _flux(distilled: bool = False) -> Any:
    """As Flux.1 dev, which reads the guidance scale, or as the distilled schnell, which reads none."""
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=TEXT_WIDTH, guidance_embeds=not distilled, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    schedule = {"shift": 1.0} if distilled else {"shift": 3.0, "use_dynamic_shifting": True}
    return diffusers.FluxPipeline(
        transformer=transformer, scheduler=_flow_schedule(**schedule), vae=_vae(16, **FLUX_VAE),
        text_encoder=_clip(), tokenizer=byte_tokenizer(), text_encoder_2=_t5(), tokenizer_2=_t5_tokenizer(),
    )  # fmt: skip


def _qwen_image() -> Any:
    import diffusers
    import transformers

    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    text = _qwen_sizes() | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT_WIDTH}
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    schedule = _flow_schedule(use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02)
    return diffusers.QwenImagePipeline(
        transformer=transformer, scheduler=schedule, text_encoder=encoder, tokenizer=_qwen_tokenizer(),
        vae=diffusers.AutoencoderKLQwenImage(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
    )  # fmt: skip


def _z_image() -> Any:
    import diffusers
    import transformers

    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT_WIDTH, axes_dims=[4, 6, 6]
    )
    return diffusers.ZImagePipeline(
        transformer=transformer, scheduler=_flow_schedule(shift=3.0), vae=_vae(16, **FLUX_VAE), tokenizer=_qwen_tokenizer(),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**_qwen_sizes(), head_dim=8)),
    )  # fmt: skip


def _pixart_sigma() -> Any:
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32,
        sample_size=8, patch_size=2, caption_channels=T5_WIDTH, use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5(), vae=_vae(4, scaling_factor=0.13025), transformer=transformer,
        scheduler=_noise_schedule("DPMSolverMultistepScheduler"),
    )  # fmt: skip


def _controlnet(unet: Any) -> Any:
    import diffusers

    return diffusers.ControlNetModel.from_unet(unet, conditioning_channels=3)


TINY_FAMILIES: dict[str, Callable[[], Any]] = {
    "tiny-sd15": _sd15,
    "tiny-sd15-inpaint": lambda: _sd15("StableDiffusionInpaintPipeline", channels=9),
    "tiny-sd2": _sd2,
    "tiny-sdxl": _sdxl,
    "tiny-sdxl-inpaint": lambda: _sdxl("StableDiffusionXLInpaintPipeline", channels=9),
    "tiny-sd3": _sd3,
    "tiny-flux": _flux,
    "tiny-flux-schnell": lambda: _flux(distilled=True),
    "tiny-qwen-image": _qwen_image,
    "tiny-z-image": _z_image,
    "tiny-pixart-sigma": _pixart_sigma,
}
"""Name → the pipeline, as diffusers builds it."""
TINY_CONTROLNETS: dict[str, Callable[[], Any]] = {
    "tiny-sd15-controlnet": lambda: _controlnet(_sd15_unet()),
    "tiny-sdxl-controlnet": lambda: _controlnet(_sdxl_unet()),
}
"""Name → a ControlNet for the family before the last hyphen."""


def _sd15_unet(channels: int = 4) -> Any:
    return _unet(TEXT_WIDTH, in_channels=channels)


def _sdxl_unet(channels: int = 4) -> Any:
    """`projection_class_embeddings_input_dim`: the pooled text and six sizes of `addition_time_embed_dim` values each."""
    return _unet(
        2 * TEXT_WIDTH, in_channels=channels, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 8,
    )  # fmt: skip


def _unet(text_width: int, **config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=2, cross_attention_dim=text_width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, **config,
    )  # fmt: skip


def _vae(channels: int, **config: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=channels, layers_per_block=1, block_out_channels=(4, 4, 8, 8), norm_num_groups=2, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **config,
    )  # fmt: skip


def _noise_schedule(kind: str, **config: Any) -> Any:
    import diffusers

    scaled = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return getattr(diffusers, kind)(**scaled, **config)


def _flow_schedule(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def _clip(*, projection: bool = False, hidden_act: str = "quick_gelu") -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514, hidden_size=TEXT_WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, hidden_act=hidden_act,
        projection_dim=TEXT_WIDTH, max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _second_tokenizer() -> Any:
    """OpenCLIP's tokenizer: it pads with the first token, in place of the one that ends a text."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "!"  # noqa: S105 - no password
    return tokenizer


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=128, d_model=T5_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4))


def _t5_tokenizer() -> Any:
    """A token for each printable character of ASCII; others are unknown."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(code), -3.0) for code in range(33, 127))]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _qwen_sizes() -> dict[str, int]:
    return {
        "vocab_size": 300, "hidden_size": TEXT_WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "bos_token_id": 256, "eos_token_id": 258,
    }  # fmt: skip


def _qwen_tokenizer() -> Any:
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: number for number, token in enumerate([*byte_alphabet(), *special])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
