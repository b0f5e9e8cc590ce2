"""Stable Diffusion 3 and 3.5: two CLIPs and T5, whose texts always have the same length."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch

from actors.engines.diffusion.batching import Condition, DiffusionRow
from actors.engines.diffusion.families.clip_windows import limit_tokens
from actors.engines.diffusion.families.family import Defaults, LayerAlias, stack
from actors.engines.diffusion.families.original_layers import LayerNames, clip_aliases, original_aliases, qkv
from actors.engines.diffusion.families.transformer import FlowFamily, count_tokens
from actors.engines.diffusion.requests import ResolvedRequest
from bus.errors import PermanentError

T5_TOKENS = 256
BLOCK: LayerNames = {
    **qkv("x_block.attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    **qkv("x_block.attn2.qkv", "attn2.to_q", "attn2.to_k", "attn2.to_v"),
    **qkv("context_block.attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
}
BLOCKS = {"transformer_blocks": ("joint_blocks", BLOCK)}
OTHERS: LayerNames = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
}
"""Without `norm_out.linear`, whose two halves are in the other order in the first implementation."""


class StableDiffusion3(FlowFamily):
    """T5 may be missing, then zeros stand for its text. CLIP reads the first 77 tokens of a prompt beside T5, which reads it whole."""

    name = "Stable Diffusion 3"
    indexes = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
    loader = "StableDiffusion3Pipeline"
    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "transformer", "vae", "scheduler")
    optional_parts = ("tokenizer_3", "text_encoder_3")
    lora_prefixes: ClassVar[dict[str, str]] = {
        "transformer.": "transformer", "base_model.model.": "transformer", "diffusion_model.": "transformer",
        "model.diffusion_model.": "transformer", "lora_unet_": "transformer", "lora_transformer_": "transformer", "": "transformer",
        "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2", "text_encoder_3.": "text_encoder_3",
        "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3",
    }  # fmt: skip
    cached_blocks = ("transformer_blocks",)
    defaults = Defaults(side=1024, steps=28, guidance_scale=7.0, scheduler="euler")
    prompt_tokens = T5_TOKENS
    max_shift = 1.16

    # -- a checkpoint

    def check(self) -> None:
        super().check()
        limit_tokens(self.pipeline, "tokenizer", "text_encoder")
        limit_tokens(self.pipeline, "tokenizer_2", "text_encoder_2")
        self.pipeline.tokenizer_max_length = self.pipeline.tokenizer.model_max_length

    def widths(self) -> Mapping[str, tuple[int, int]]:
        pipeline, config = self.pipeline, self.denoiser.config
        clips, t5 = (pipeline.text_encoder, pipeline.text_encoder_2), pipeline.text_encoder_3
        return {
            "latent channels": (self.latent_channels, config.in_channels),
            "width of the pooled text": (sum(clip.config.projection_dim for clip in clips), config.pooled_projection_dim),
            **({"width of T5's text": (t5.config.d_model, config.joint_attention_dim)} if t5 is not None else {}),
        }

    # -- an order

    def check_request(self, request: ResolvedRequest) -> None:
        """The transformer has a table of positions."""
        super().check_request(request)
        config = self.denoiser.config
        longest = (config.pos_embed_max_size or 0) * config.patch_size * self.vae_scale
        if longest and max(request.width, request.height) > longest:
            message = f"{request.width}×{request.height}: both sides may have at most {longest} pixels with this checkpoint"
            raise PermanentError("size-unsupported", message)

    def noise_levels(self, steps: int) -> Sequence[float] | None:
        return None

    def count_prompt(self, prompt: str) -> tuple[int, int]:
        if self.pipeline.text_encoder_3 is not None:
            return count_tokens(self.pipeline.tokenizer_3, prompt), T5_TOKENS
        clips = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        return max(count_tokens(clip, prompt) for clip in clips), int(self.pipeline.tokenizer_max_length)

    def encode_prompt(self, prompt: str) -> Condition:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompt, None, None, self.text_device, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
        )
        return {"text": text, "pooled": pooled}

    # -- a step

    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditions: Sequence[Condition], rows: Sequence[DiffusionRow]) -> torch.Tensor:
        text, pooled = stack(conditions, "text"), stack(conditions, "pooled")
        return self.denoiser(hidden_states=x, timestep=t, encoder_hidden_states=text, pooled_projections=pooled, return_dict=False)[0]

    # -- LoRA

    def lora_aliases(self, part: str, layer: str) -> Iterator[LayerAlias]:
        if part in ("text_encoder", "text_encoder_2"):
            yield from clip_aliases(layer)
        elif part == "transformer" and not self._has_other_order(layer):
            yield from original_aliases(self.denoiser, layer, self.denoiser.inner_dim, BLOCKS, OTHERS)

    def _has_other_order(self, layer: str) -> bool:
        """Whether scale and shift are swapped in the first implementation, as in the last block, which gives no text."""
        return layer == f"transformer_blocks.{self.denoiser.config.num_layers - 1}.norm1_context.linear"
