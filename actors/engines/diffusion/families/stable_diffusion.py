"""Stable Diffusion 1 and 2, also with v-prediction, and their checkpoints for inpainting."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, ClassVar

import torch

from actors.engines.diffusion.batching import Condition, DiffusionRow
from actors.engines.diffusion.families.clip_windows import MAX_WINDOWS, count_windows, limit_tokens, prompt_windows
from actors.engines.diffusion.families.family import Family, LayerAlias, stack
from actors.engines.diffusion.families.unet_control import control_residuals
from actors.engines.diffusion.families.unet_layers import original_name, plain_up_blocks
from actors.engines.diffusion.requests import EditSource, ResolvedRequest
from actors.engines.diffusion.schedulers import SCHEDULERS


class StableDiffusion(Family):
    """A U-Net that reads the text of one CLIP. A row's text has one or more windows of 77 tokens."""

    name = "Stable Diffusion"
    indexes = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
    loader = "StableDiffusionPipeline"
    parts: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
    has_safety_checker: ClassVar[bool] = True
    denoiser_part = "unet"
    lora_prefixes: ClassVar[dict[str, str]] = {
        "unet.": "unet", "lora_unet_": "unet", "base_model.model.": "unet",
        "text_encoder.": "text_encoder", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
    }  # fmt: skip
    schedulers = tuple(SCHEDULERS)
    edits = frozenset({"img2img", "inpaint", "control"})
    prompt_tokens = MAX_WINDOWS * 75
    has_inpainting_checkpoints = True
    clips: ClassVar[tuple[tuple[str, str], ...]] = (("tokenizer", "text_encoder"),)
    """Tokenizer and text encoder of each CLIP."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.mask_beside = self.denoiser.config.in_channels == 2 * self.latent_channels + 1

    # -- a checkpoint

    def check(self) -> None:
        for tokenizer, encoder in self.clips:
            check_clip(self.pipeline, tokenizer, encoder)
        self.check_unet(sum(getattr(self.pipeline, encoder).config.hidden_size for _, encoder in self.clips))
        vae = self.pipeline.vae.config
        if not isinstance(vae.scaling_factor, int | float) or not vae.scaling_factor:
            raise ValueError(f"scaling_factor in vae/config.json is {vae.scaling_factor!r}; take the file of the checkpoint's origin")

    def check_unet(self, text_width: int) -> None:
        """`text_width`: the values a token that the text encoders give."""
        unet, channels = self.denoiser.config, self.pipeline.vae.config.latent_channels
        read_width = unet.cross_attention_dim
        if isinstance(read_width, int) and text_width != read_width and not unet.get("encoder_hid_dim"):
            raise ValueError(
                f"the text encoder gives {text_width} values a token, the UNet reads {read_width} (cross_attention_dim in "
                "unet/config.json): they are of different models"
            )
        if unet.in_channels not in (channels, 2 * channels + 1) or unet.out_channels != channels or channels != self.latent_channels:
            raise ValueError(
                f"the UNet reads {unet.in_channels} channels and gives {unet.out_channels}, the VAE has {channels} (latent_channels "
                f"in vae/config.json): {self.name} has {self.latent_channels}, and a checkpoint for inpainting reads 9"
            )
        if unet.get("time_cond_proj_dim"):
            raise ValueError(
                "the UNet reads the guidance as an embedding (time_cond_proj_dim in unet/config.json): it is of another family"
            )

    # -- an order

    def group(self, request: ResolvedRequest, conditions: Sequence[Condition]) -> Hashable:
        return int(conditions[0]["text"].shape[1])

    def encode(self, request: ResolvedRequest) -> list[Condition]:
        prompts = [request.negative_prompt, request.prompt] if self.is_guided(request) else [request.prompt]
        length = count_windows(self.pipeline, [getattr(self.pipeline, tokenizer) for tokenizer, _ in self.clips], prompts)
        return [self.encode_prompt(prompt, length) for prompt in prompts]

    def encode_prompt(self, prompt: str, length: int) -> Condition:
        """`text`: 1 × 77 · `length` × width. The windows are encoded one by one, so that each is as it would be alone."""
        windows = prompt_windows(self.pipeline, self.pipeline.tokenizer, prompt, length)
        return {"text": torch.cat([self.encode_window(window) for window in windows], dim=1).to(self.device)}

    def encode_window(self, window: dict[str, torch.Tensor]) -> torch.Tensor:
        """1 × 77 × width."""
        encoder = self.pipeline.text_encoder
        reads_mask = getattr(encoder.config, "use_attention_mask", False)
        mask = window["attention_mask"].to(encoder.device) if reads_mask else None
        return encoder(window["input_ids"].to(encoder.device), attention_mask=mask)[0].to(encoder.dtype)

    # -- edits

    def first_step(self, request: ResolvedRequest, edit: EditSource) -> int:
        """The steps that are made are rounded down, as in the stock pipelines of this family."""
        return max(request.steps - min(int(request.steps * edit.strength), request.steps), 0)

    # -- a step

    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditions: Sequence[Condition], rows: Sequence[DiffusionRow]) -> torch.Tensor:
        text, added = stack(conditions, "text"), self.added_conditions(conditions)
        residuals = control_residuals(x, t, text, added, rows)
        if self.mask_beside:
            x = torch.cat([x, torch.cat([row.beside for row in rows])], dim=1)
        options = {"added_cond_kwargs": added} if added else {}
        return self.denoiser(x, t, encoder_hidden_states=text, return_dict=False, **options, **residuals)[0]

    def added_conditions(self, conditions: Sequence[Condition]) -> dict[str, torch.Tensor]:
        """What the U-Net reads beside the text: name → R × …"""
        return {}

    # -- LoRA

    def lora_aliases(self, part: str, layer: str) -> Iterator[LayerAlias]:
        """Some versions of the libraries begin the names of the text encoder's layers with `text_model.`, some do not."""
        if part != "unet":
            yield LayerAlias(layer.removeprefix("text_model."))
            yield LayerAlias(f"text_model.{layer.removeprefix('text_model.')}")
            return
        per_block = self.denoiser.config.layers_per_block
        if isinstance(per_block, int) and (original := original_name(layer, per_block, plain_up_blocks(self.denoiser))):
            yield LayerAlias(original)


def check_clip(pipeline: Any, tokenizer_part: str, encoder_part: str) -> None:
    """Sets the tokenizer's limit where its file lacks it. Raises ValueError for a tokenizer of another model."""
    tokenizer, config = getattr(pipeline, tokenizer_part), getattr(pipeline, encoder_part).config
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the {tokenizer_part} has {len(tokenizer)} tokens, the text encoder {config.vocab_size} (vocab_size in "
            f"{encoder_part}/config.json): they are of different models"
        )
    limit_tokens(pipeline, tokenizer_part, encoder_part)
