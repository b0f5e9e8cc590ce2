"""Qwen-Image: packed latents of a VAE for videos, of which a picture is one frame; texts of any length, masked where they are padded."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from actors.engines.diffusion.batching import Condition, DiffusionRow
from actors.engines.diffusion.families.family import Defaults
from actors.engines.diffusion.families.packed import PackedFamily
from actors.engines.diffusion.families.transformer import count_tokens
from actors.engines.diffusion.requests import ResolvedRequest

PROMPT_TOKENS = 1024


class QwenImage(PackedFamily):
    """Guided at a guidance scale over 1 (the stock pipeline's `true_cfg_scale`); without a negative prompt a space is the negative one."""

    name = "Qwen-Image"
    indexes = ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline")
    loader = "QwenImagePipeline"
    parts = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    lora_prefixes: ClassVar[dict[str, str]] = dict.fromkeys(
        ("transformer.", "base_model.model.", "diffusion_model.", "model.diffusion_model.", "lora_unet_", "lora_transformer_", ""),
        "transformer",
    )
    cached_blocks = ("transformer_blocks",)
    defaults = Defaults(side=1024, steps=50, guidance_scale=4.0, scheduler="euler")
    prompt_tokens = PROMPT_TOKENS
    no_negative = " "

    # -- a checkpoint

    def check(self) -> None:
        super().check()
        if self.denoiser.config.guidance_embeds:
            raise ValueError("its transformer reads the guidance (guidance_embeds in transformer/config.json), which no Qwen-Image does")

    def widths(self) -> Mapping[str, tuple[int, int]]:
        text, config = self.pipeline.text_encoder.config.get_text_config(), self.denoiser.config
        return {
            "latents of a token": (4 * self.latent_channels, config.in_channels),
            "width of the text": (text.hidden_size, config.joint_attention_dim),
        }

    # -- an order

    def count_prompt(self, prompt: str) -> tuple[int, int]:
        """Without the instruction before the prompt, of which the transformer gets nothing."""
        written = self.pipeline.prompt_template_encode.format(prompt)
        return count_tokens(self.pipeline.tokenizer, written) - self.pipeline.prompt_template_encode_start_idx, PROMPT_TOKENS

    def encode_prompt(self, prompt: str) -> Condition:
        """`text`: 1 × tokens × width, without padding."""
        return {"text": self.pipeline.encode_prompt(prompt, self.text_device, max_sequence_length=PROMPT_TOKENS)[0]}

    def draw_noise(self, request: ResolvedRequest, generator: torch.Generator) -> torch.Tensor:
        """1 × 1 × C × h × w: the second axis is the frame."""
        return super().draw_noise(request, generator).unsqueeze(1)

    # -- pictures and latents

    def to_frame(self, picture: torch.Tensor) -> torch.Tensor:
        """1 × 3 × 1 × H × W."""
        return picture.unsqueeze(2)

    def sample_latents(self, encoded: Any, generator: torch.Generator) -> torch.Tensor:
        """1 × 1 × C × h × w, as the noise."""
        return super().sample_latents(encoded, generator).transpose(1, 2)

    def unpack(self, request: ResolvedRequest, latents: torch.Tensor) -> torch.Tensor:
        """1 × C × 1 × h × w."""
        return super().unpack(request, latents).unsqueeze(2)

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._statistics(latents)
        return (latents - mean) * (1.0 / deviation)

    def unscale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._statistics(latents)
        return latents / (1.0 / deviation) + mean

    def _statistics(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Mean and standard deviation of each channel; reciprocals are taken where the stock pipelines take them, to round as they do."""
        config = self.pipeline.vae.config
        return [torch.tensor(values).view(1, -1, 1, 1, 1).to(latents) for values in (config.latents_mean, config.latents_std)]

    def decode(self, request: ResolvedRequest, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        unpacked = self.unpack(request, latents).to(device=vae.device, dtype=vae.dtype)
        return vae.decode(self.unscale_latents(unpacked), return_dict=False)[0][0, :, 0].permute(1, 2, 0)

    # -- a step

    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditions: Sequence[Condition], rows: Sequence[DiffusionRow]) -> torch.Tensor:
        """Shorter texts are padded at the end, and the padding is masked. Texts of one length get no mask: it takes another kernel."""
        texts = [condition["text"][0] for condition in conditions]
        lengths = torch.tensor([len(text) for text in texts], device=x.device)
        text = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = torch.arange(text.shape[1], device=x.device) < lengths[:, None]
        same_length = len({len(text) for text in texts}) == 1
        return self.denoiser(
            hidden_states=x, timestep=t.to(x.dtype) / 1000, encoder_hidden_states=text,
            encoder_hidden_states_mask=None if same_length else mask,
            img_shapes=[[(1, *self.grid_size(rows[0].request))]] * len(x), return_dict=False,
        )[0]  # fmt: skip

    def guide(self, row: DiffusionRow, predictions: torch.Tensor) -> torch.Tensor:
        """Of each token, guidance changes the direction alone: its norm is that of the positive half."""
        guided, positive = super().guide(row, predictions), predictions[-1:]
        if len(predictions) == 1:
            return guided
        return guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
