"""Flux.1 dev and schnell: packed latents, T5 without a mask, and a guidance that dev reads as a number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from actors.engines.diffusion.batching import Condition, DiffusionRow
from actors.engines.diffusion.families.clip_windows import limit_tokens
from actors.engines.diffusion.families.family import Defaults, LayerAlias, stack
from actors.engines.diffusion.families.original_layers import Fused, LayerNames, clip_aliases, original_aliases, qkv
from actors.engines.diffusion.families.packed import PackedFamily
from actors.engines.diffusion.families.transformer import count_tokens
from actors.engines.diffusion.requests import ResolvedRequest
from bus.errors import PermanentError

T5_TOKENS = 512
TRUE_CFG_SCALE = 2.0
"""Of an order with a negative prompt that names none."""
DOUBLE_BLOCK: LayerNames = {
    **qkv("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    **qkv("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
}
SINGLE_BLOCK: LayerNames = {
    **qkv("linear1", "attn.to_q", "attn.to_k", "attn.to_v"),
    "proj_mlp": Fused("linear1", 3),
    "proj_out": "linear2",
    "norm.linear": "modulation.lin",
}
BLOCKS = {"transformer_blocks": ("double_blocks", DOUBLE_BLOCK), "single_transformer_blocks": ("single_blocks", SINGLE_BLOCK)}
OTHERS: LayerNames = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
"""Without `norm_out.linear`, whose two halves are in the other order in the first implementation."""


class Flux(PackedFamily):
    """The guidance scale is an input of the transformer (dev) or there is none (schnell). An order with a negative prompt is guided by two
    halves, as strongly as its `true_cfg_scale`. Of the CLIP, which reads 77 tokens, the transformer gets one vector; T5 reads the prompt.
    """

    name = "Flux.1"
    indexes = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
    loader = "FluxPipeline"
    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "transformer", "vae", "scheduler")
    lora_prefixes: ClassVar[dict[str, str]] = {
        "transformer.": "transformer", "base_model.model.": "transformer", "diffusion_model.": "transformer",
        "model.diffusion_model.": "transformer", "lora_unet_": "transformer", "lora_transformer_": "transformer", "": "transformer",
        "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
        "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_2", "text_encoders.clip_l.transformer.": "text_encoder",
        "text_encoders.t5xxl.transformer.": "text_encoder_2",
    }  # fmt: skip
    cached_blocks = ("transformer_blocks", "single_transformer_blocks")
    defaults = Defaults(side=1024, steps=28, guidance_scale=3.5, scheduler="euler")
    prompt_tokens = T5_TOKENS
    takes_true_cfg = True

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        if not self.denoiser.config.guidance_embeds:
            self.defaults = replace(self.defaults, steps=4, guidance_scale=0.0)

    # -- a checkpoint

    def check(self) -> None:
        super().check()
        limit_tokens(self.pipeline, "tokenizer", "text_encoder")
        self.pipeline.tokenizer_max_length = self.pipeline.tokenizer.model_max_length

    def widths(self) -> Mapping[str, tuple[int, int]]:
        pipeline, config = self.pipeline, self.denoiser.config
        return {
            "latents of a token": (4 * self.latent_channels, config.in_channels),
            "width of the pooled text": (pipeline.text_encoder.config.hidden_size, config.pooled_projection_dim),
            "width of T5's text": (pipeline.text_encoder_2.config.d_model, config.joint_attention_dim),
        }

    # -- an order

    def check_request(self, request: ResolvedRequest) -> None:
        super().check_request(request)
        if request.true_cfg_scale is not None and not request.negative_prompt:
            raise PermanentError("parameter-unsupported", "true_cfg_scale has an effect only with a negative_prompt: give both or none")
        if not self.denoiser.config.guidance_embeds and request.guidance_scale != self.defaults.guidance_scale:
            raise PermanentError("parameter-unsupported", "this checkpoint of Flux.1 reads no guidance_scale: leave it out")

    def is_guided(self, request: ResolvedRequest) -> bool:
        return bool(request.negative_prompt) and true_cfg_scale(request) > 1

    def count_prompt(self, prompt: str) -> tuple[int, int]:
        return count_tokens(self.pipeline.tokenizer_2, prompt), T5_TOKENS

    def encode_prompt(self, prompt: str) -> Condition:
        text, pooled, _ = self.pipeline.encode_prompt(prompt, None, self.text_device, max_sequence_length=T5_TOKENS)
        return {"text": text, "pooled": pooled}

    # -- a step

    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditions: Sequence[Condition], rows: Sequence[DiffusionRow]) -> torch.Tensor:
        text, guidance = stack(conditions, "text"), None
        if self.denoiser.config.guidance_embeds:
            guidance = torch.tensor([row.request.guidance_scale for row in rows], dtype=torch.float32, device=x.device)
        return self.denoiser(
            hidden_states=x, timestep=t.to(x.dtype) / 1000, guidance=guidance, encoder_hidden_states=text,
            pooled_projections=stack(conditions, "pooled"), txt_ids=torch.zeros(text.shape[1], 3, dtype=x.dtype, device=x.device),
            img_ids=self.positions(rows[0].request).to(x), return_dict=False,
        )[0]  # fmt: skip

    def positions(self, request: ResolvedRequest) -> torch.Tensor:
        """Of each token of the picture: 0, its line and its column. Tokens × 3."""
        height, width = self.grid_size(request)
        return torch.cartesian_prod(torch.zeros(1), torch.arange(float(height)), torch.arange(float(width)))

    def guide(self, row: DiffusionRow, predictions: torch.Tensor) -> torch.Tensor:
        if len(predictions) == 1:
            return predictions
        negative, positive = predictions[:1], predictions[1:]
        return negative + true_cfg_scale(row.request) * (positive - negative)

    # -- LoRA

    def lora_aliases(self, part: str, layer: str) -> Iterator[LayerAlias]:
        if part == "text_encoder":
            yield from clip_aliases(layer)
        elif part == "transformer":
            yield from original_aliases(self.denoiser, layer, self.denoiser.inner_dim, BLOCKS, OTHERS)


def true_cfg_scale(request: ResolvedRequest) -> float:
    return TRUE_CFG_SCALE if request.true_cfg_scale is None else request.true_cfg_scale
