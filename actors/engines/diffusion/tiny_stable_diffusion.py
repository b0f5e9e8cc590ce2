"""A tiny Stable Diffusion with random weights and tiny LoRAs, in the real classes and the real file formats.

Writes a pipeline folder (about 0.3 MB) and safetensors files. The VAE scales by 8, so sizes are those of the real model.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

HIDDEN_SIZE = 32
"""Width of the text encoder's output, which the UNet's cross attention reads."""
LORA_STRENGTH = 0.3
"""Scale of LoRA weights: visible in the image, yet so small that FP32 rounding does not grow to a visible difference over the steps."""


def write_tiny_diffusion(folder: Path, *, seed: int = 0) -> None:
    """Save a whole pipeline in `folder`."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = build_pipeline()
    pipeline.save_pretrained(folder, safe_serialization=True)


def write_tiny_lora(
    file: Path, model: Path, *, seed: int, rank: int = 4, text_encoder: bool = False, key_format: str = "diffusers"
) -> None:
    """Save LoRA weights that fit the pipeline in `model` and change its images visibly.

    `key_format`: `diffusers` (keys begin with `unet.`) or `peft` (`base_model.model.`, as in an adapter folder).
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    prefix = {"diffusers": "unet.", "peft": "base_model.model."}[key_format]
    tensors = _lora_tensors(_attention_shapes(model, "unet"), prefix, rank, generator)
    if text_encoder:
        tensors |= _lora_tensors(_attention_shapes(model, "text_encoder"), "text_encoder.", rank, generator)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)


def build_pipeline() -> "StableDiffusionPipeline":
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=_vae(), text_encoder=_text_encoder(), tokenizer=byte_tokenizer(), unet=_unet(), scheduler=default_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _unet() -> Any:
    """Attention only at a quarter of the latents' side: at full size it would take most of the time on a CPU."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(4, 8, 8), norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=HIDDEN_SIZE, attention_head_dim=2,
    )  # fmt: skip


def _vae() -> Any:
    """Four blocks halve the side three times: latents are an eighth of the image, as in Stable Diffusion."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, block_out_channels=(4, 4, 8, 8), norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, sample_size=512, scaling_factor=0.18215,
    )  # fmt: skip


def _text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=514, hidden_size=HIDDEN_SIZE, intermediate_size=2 * HIDDEN_SIZE, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def byte_tokenizer() -> Any:
    """A CLIP tokenizer whose tokens are single bytes, inside a word and at its end, so that it encodes any text."""
    from transformers import CLIPTokenizer

    characters = byte_alphabet()
    tokens = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77)


def byte_alphabet() -> list[str]:
    """The printable character of each byte in GPT-2's and CLIP's alphabets: itself where printable, else from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def default_scheduler() -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", algorithm_type="dpmsolver++", solver_order=2, steps_offset=1
    )


def _attention_shapes(model: Path, part: str) -> dict[str, tuple[int, int]]:
    """Name → shape (out, in) of each attention projection of `unet` or `text_encoder`, read from the weights' header."""
    from safetensors import safe_open

    file = next((model / part).glob("*.safetensors"))
    projections = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
    with safe_open(file, framework="pt") as weights:
        names = [key.removesuffix(".weight") for key in weights.keys() if key.endswith(".weight")]  # noqa: SIM118 - not a dict
        return {name: tuple(weights.get_slice(f"{name}.weight").get_shape()) for name in names if name.endswith(projections)}


def _lora_tensors(shapes: dict[str, tuple[int, int]], prefix: str, rank: int, generator: Any) -> dict[str, Any]:
    import torch

    tensors = {}
    for name, (rows, columns) in shapes.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.randn((rank, columns), generator=generator)
        tensors[f"{prefix}{name}.lora_B.weight"] = LORA_STRENGTH * torch.randn((rows, rank), generator=generator)
    return tensors
