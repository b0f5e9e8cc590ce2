"""Z-Image: texts of any length, time that runs from 0 to 1, latents in float32."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch

from actors.engines.diffusion.batching import Condition, DiffusionRow
from actors.engines.diffusion.families.family import Defaults, LayerAlias
from actors.engines.diffusion.families.original_layers import LayerNames, original_aliases, qkv
from actors.engines.diffusion.families.transformer import FlowFamily, count_tokens
from actors.engines.diffusion.requests import ResolvedRequest

PROMPT_TOKENS = 512
BLOCK: LayerNames = {
    **qkv("attention.qkv", "attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.to_out.0": "attention.out",
}
BLOCKS = {blocks: (blocks, BLOCK) for blocks in ("layers", "noise_refiner", "context_refiner")}
OTHERS: LayerNames = {
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}


class ZImage(FlowFamily):
    """Guided at a guidance scale over 0, where the stock pipeline begins; the distilled Turbo is drawn with 0."""

    name = "Z-Image"
    indexes = ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline")
    loader = "ZImagePipeline"
    parts = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    lora_prefixes: ClassVar[dict[str, str]] = dict.fromkeys(
        ("transformer.", "base_model.model.", "diffusion_model.", "model.diffusion_model.", "lora_unet_", "lora_transformer_", ""),
        "transformer",
    )
    defaults = Defaults(side=1024, steps=50, guidance_scale=5.0, scheduler="euler")
    prompt_tokens = PROMPT_TOKENS

    def widths(self) -> Mapping[str, tuple[int, int]]:
        config = self.denoiser.config
        return {
            "latent channels": (self.latent_channels, config.in_channels),
            "width of the text": (self.pipeline.text_encoder.config.hidden_size, config.cap_feat_dim),
        }

    # -- an order

    def is_guided(self, request: ResolvedRequest) -> bool:
        return request.guidance_scale > 0

    def noise_levels(self, steps: int) -> Sequence[float]:
        """Rounded to float32 step by step, as in the stock pipeline."""
        return list(torch.linspace(1.0, 1 / steps, steps).tolist())

    def count_prompt(self, prompt: str) -> tuple[int, int]:
        """As one side of a conversation, as the pipeline writes it."""
        messages = [{"role": "user", "content": prompt}]
        written = self.pipeline.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        return count_tokens(self.pipeline.tokenizer, written), PROMPT_TOKENS

    def encode_prompt(self, prompt: str) -> Condition:
        """`text`: 1 × tokens × width, without padding."""
        texts, _ = self.pipeline.encode_prompt(
            prompt, self.text_device, do_classifier_free_guidance=False, max_sequence_length=PROMPT_TOKENS
        )
        return {"text": texts[0].unsqueeze(0)}

    def draw_noise(self, request: ResolvedRequest, generator: torch.Generator) -> torch.Tensor:
        """In float32, but for an edit in the model's dtype: so the stock pipelines draw."""
        dtype = self.dtype if request.edit else torch.float32
        shape = (1, self.latent_channels, *self.latent_size(request))
        return torch.randn(shape, generator=generator, dtype=dtype).to(self.device)

    # -- a step

    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditions: Sequence[Condition], rows: Sequence[DiffusionRow]) -> torch.Tensor:
        """The transformer takes lists of pictures, each one frame, and of texts."""
        pictures = list(x.to(self.dtype).unsqueeze(2).unbind())
        texts = [condition["text"][0] for condition in conditions]
        predictions = self.denoiser(pictures, (1000 - t) / 1000, texts, return_dict=False)[0]
        return torch.stack(predictions).squeeze(2).float()

    def guide(self, row: DiffusionRow, predictions: torch.Tensor) -> torch.Tensor:
        """The transformer predicts the way from noise to picture, the scheduler wants the way back."""
        positive = predictions[-1:]
        if len(predictions) == 1:
            return -positive
        return -(positive + row.request.guidance_scale * (positive - predictions[:1]))

    # -- LoRA

    def lora_aliases(self, part: str, layer: str) -> Iterator[LayerAlias]:
        yield from original_aliases(self.denoiser, layer, self.denoiser.dim, BLOCKS, OTHERS)

    def lora_excluded(self, part: str, layer: str) -> bool:
        """The embedders of pictures and texts read the tokens of all rows as one list."""
        return layer.startswith(("all_x_embedder.", "cap_embedder."))
