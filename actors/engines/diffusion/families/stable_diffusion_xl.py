"""Stable Diffusion XL, and its checkpoints for inpainting. The refiner, which has one text encoder, is not among them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from actors.engines.diffusion.batching import Condition
from actors.engines.diffusion.families.clip_windows import prompt_windows
from actors.engines.diffusion.families.family import Defaults, stack
from actors.engines.diffusion.families.stable_diffusion import StableDiffusion
from actors.engines.diffusion.requests import ResolvedRequest

MEASURES = 6
"""Numbers of a picture that the U-Net reads: its size, the corner of its crop, and the size that is wanted."""


class StableDiffusionXL(StableDiffusion):
    """A U-Net that reads the text of two CLIPs side by side, the second's pooled output, and the size of the picture."""

    name = "Stable Diffusion XL"
    indexes = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
    loader = "StableDiffusionXLPipeline"
    parts = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae", "scheduler")
    has_safety_checker = False
    lora_prefixes: ClassVar[dict[str, str]] = StableDiffusion.lora_prefixes | {
        "text_encoder_2.": "text_encoder_2",
        "lora_te2_": "text_encoder_2",
    }
    defaults = Defaults(side=1024, guidance_scale=5.0)
    clips = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))

    # -- a checkpoint

    @classmethod
    def vae_dtype(cls, config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
        """The first VAE of this family overflows in half precision; one whose file says `"force_upcast": false` does not."""
        return torch.promote_types(dtype, torch.float32) if config.get("force_upcast", True) else dtype

    def check_unet(self, text_width: int) -> None:
        super().check_unet(text_width)
        encoder = self.pipeline.text_encoder_2
        if not hasattr(encoder, "text_projection"):
            raise ValueError(f"text_encoder_2 is a {type(encoder).__name__} without projection: the U-Net reads its pooled output")
        unet, pooled_width = self.denoiser.config, encoder.config.projection_dim
        given = pooled_width + MEASURES * (unet.addition_time_embed_dim or 0)
        if unet.addition_embed_type != "text_time" or unet.projection_class_embeddings_input_dim != given:
            raise ValueError(
                f"the UNet reads {unet.projection_class_embeddings_input_dim} values of the pooled text and of the picture's size "
                f"(projection_class_embeddings_input_dim in unet/config.json), text encoder and size give {given}: "
                "they are of different models"
            )

    # -- an order

    def encode(self, request: ResolvedRequest) -> list[Condition]:
        """Where the checkpoint says so, zeros stand for a negative prompt that is none."""
        conditions = super().encode(request)
        if len(conditions) == 2 and not request.negative_prompt and self.pipeline.config.force_zeros_for_empty_prompt:
            conditions[0] = {name: torch.zeros_like(tensor) for name, tensor in conditions[1].items()}
        size = (request.height, request.width)
        measures = torch.tensor([[*size, 0, 0, *size]], dtype=conditions[0]["text"].dtype, device=self.device)
        return [{**condition, "measures": measures} for condition in conditions]

    def encode_prompt(self, prompt: str, length: int) -> Condition:
        """`text`: 1 × 77 · `length` × both widths; `pooled`: of the first window, 1 × width."""
        texts, pooled = [], torch.empty(0)
        for tokenizer, part in self.clips:
            encoder = getattr(self.pipeline, part)
            windows = prompt_windows(self.pipeline, getattr(self.pipeline, tokenizer), prompt, length)
            outputs = [encoder(window["input_ids"].to(encoder.device), output_hidden_states=True) for window in windows]
            texts.append(torch.cat([output.hidden_states[-2] for output in outputs], dim=1).to(self.device))
            pooled = outputs[0][0].to(self.device)
        return {"text": torch.cat(texts, dim=-1).to(encoder.dtype), "pooled": pooled}

    # -- a step

    def added_conditions(self, conditions: Sequence[Condition]) -> dict[str, torch.Tensor]:
        return {"text_embeds": stack(conditions, "pooled"), "time_ids": stack(conditions, "measures")}

    # -- latents to a picture

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        mean, deviation = self.latent_statistics(latents)
        return (latents - mean) * self.pipeline.vae.config.scaling_factor / deviation

    def unscale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        mean, deviation = self.latent_statistics(latents)
        return latents * deviation / self.pipeline.vae.config.scaling_factor + mean

    def latent_statistics(self, like: torch.Tensor) -> tuple[Any, Any]:
        """Mean and deviation of each channel, 1 × C × 1 × 1, which some checkpoints of this family name; else 0 and 1."""
        config = self.pipeline.vae.config
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return 0.0, 1.0
        mean, deviation = (torch.tensor(values).view(1, -1, 1, 1).to(like) for values in (config.latents_mean, config.latents_std))
        return mean, deviation
