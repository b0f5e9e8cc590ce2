"""PixArt-Σ: the schedules of Stable Diffusion, T5 with a mask, and a transformer that predicts noise and its variance."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from actors.engines.diffusion.batching import Condition, DiffusionRow
from actors.engines.diffusion.families.family import Defaults, EditKind, stack
from actors.engines.diffusion.families.transformer import TransformerFamily, count_tokens
from actors.engines.diffusion.requests import ResolvedRequest
from actors.engines.diffusion.schedulers import SCHEDULERS
from bus.errors import PermanentError

T5_TOKENS = 300


class PixArtSigma(TransformerFamily):
    """Prompts are read in lower case. Unlike in the stock pipeline they are not cleaned, and sizes not rounded to those of the training."""

    name = "PixArt-Σ"
    indexes = ("PixArtSigmaPipeline",)
    loader = "PixArtSigmaPipeline"
    parts = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    lora_prefixes: ClassVar[dict[str, str]] = dict.fromkeys(("transformer.", "base_model.model.", "lora_transformer_"), "transformer")
    schedulers = tuple(SCHEDULERS)
    defaults = Defaults(side=1024, steps=20, guidance_scale=4.5)
    prompt_tokens = T5_TOKENS
    edits: ClassVar[frozenset[EditKind]] = frozenset()
    latent_channels = 4

    def widths(self) -> Mapping[str, tuple[int, int]]:
        config = self.denoiser.config
        return {
            "latent channels": (self.latent_channels, config.in_channels),
            "width of T5's text": (self.pipeline.text_encoder.config.d_model, config.caption_channels),
        }

    # -- an order

    def check_request(self, request: ResolvedRequest) -> None:
        """The longest of the sizes that a checkpoint was trained with is twice as long as the square one."""
        longest = 2 * self.own_side
        if max(request.width, request.height) > longest:
            message = f"{request.width}×{request.height}: both sides may have at most {longest} pixels with this checkpoint"
            raise PermanentError("size-unsupported", message)

    def count_prompt(self, prompt: str) -> tuple[int, int]:
        return count_tokens(self.pipeline.tokenizer, prompt.lower().strip()), T5_TOKENS

    def encode_prompt(self, prompt: str) -> Condition:
        """`text`: 1 × 300 × width, `mask`: 1 × 300."""
        text, mask, _, _ = self.pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=self.text_device, clean_caption=False, max_sequence_length=T5_TOKENS
        )
        return {"text": text, "mask": mask}

    # -- a step

    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditions: Sequence[Condition], rows: Sequence[DiffusionRow]) -> torch.Tensor:
        sizes: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        return self.denoiser(
            x, encoder_hidden_states=stack(conditions, "text"), timestep=t, added_cond_kwargs=sizes,
            encoder_attention_mask=stack(conditions, "mask"), return_dict=False,
        )[0]  # fmt: skip

    def guide(self, row: DiffusionRow, predictions: torch.Tensor) -> torch.Tensor:
        """The scheduler takes the noise alone."""
        return super().guide(row, predictions)[:, : self.latent_channels]
