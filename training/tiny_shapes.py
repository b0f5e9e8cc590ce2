"""tiny-shapes: Stable Diffusion's own classes, trained to draw the shape, the colour and the background that the prompt names.

16 × 16 latents for 512 × 512 pixels. V-prediction and a noise schedule that ends in pure noise, which flat backgrounds need.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from training.autoencoder import build_autoencoder
from training.clip_tokenizer import MAX_LENGTH, build_clip_tokenizer
from training.latent_codes import CHANNELS, PIXELS_PER_LATENT, blend_colors, color_codes
from training.scenes import COLOURS, SHAPES, Scene, random_scene
from training.shape_masks import IMAGE_SIZE, ShapePlacement, centered_placement, coverage_mask, random_placement
from training.trainer import TrainingRun

TEXT_WIDTH = 64
BATCH, STEPS, FINE_TUNING_STEPS = 32, 2500, 1000
PLACEMENTS_PER_SHAPE = 64
"""Images of each shape, drawn before the training."""
UNCONDITIONAL_SHARE = 0.1
"""Share of the images without a caption, for classifier-free guidance."""
TEXT_LOSS_WEIGHT = 0.1
"""Weight of the text encoder's own loss: its last token predicts the shape and both colours."""
NOISE_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class TrainingBatch:
    """Latents, caption tokens, labels (batch × shape, colour, ground as indices), and whether each row has a caption."""

    latents: Any
    tokens: Any
    labels: Any
    has_caption: Any


def build_pipeline() -> Any:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    tokenizer = build_clip_tokenizer()
    scheduler = DPMSolverMultistepScheduler(**NOISE_SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)
    return StableDiffusionPipeline(
        vae=build_autoencoder(), text_encoder=_build_text_encoder(tokenizer), tokenizer=tokenizer, unet=_build_unet(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def load_pipeline(folder: Path) -> Any:
    """The stock pipeline, in single precision whatever precision the files have."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _build_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // PIXELS_PER_LATENT, in_channels=CHANNELS, out_channels=CHANNELS, layers_per_block=1,
        block_out_channels=(32, 64, 96), norm_num_groups=8, cross_attention_dim=TEXT_WIDTH, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def _build_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


class ShapesDataset:
    """Latents and captions. `placement`: the position of the shapes; `restyle`: maps the captions' labels to those of the image."""

    def __init__(
        self,
        tokenizer: Any,
        placement: Callable[[Random], ShapePlacement] = random_placement,
        restyle: Callable[[Any], Any] = lambda labels: labels,
    ) -> None:
        import torch

        rng = Random(0)
        self._codes, self._restyle, self._tokenizer = color_codes(), restyle, tokenizer
        masks = [
            torch.stack(
                [coverage_mask(shape, placement(rng), PIXELS_PER_LATENT, points_per_pixel=0.25) for _ in range(PLACEMENTS_PER_SHAPE)]
            )
            for shape in SHAPES
        ]
        self._masks = torch.stack(masks)
        self._tokens: dict[str, Any] = {}

    def tokenize(self, text: str) -> Any:
        import torch

        if text not in self._tokens:
            self._tokens[text] = torch.tensor(self._tokenizer(text, padding="max_length", max_length=MAX_LENGTH, truncation=True).input_ids)
        return self._tokens[text]

    def sample_batch(self, rng: Random) -> TrainingBatch:
        import torch

        scenes = [random_scene(rng) for _ in range(BATCH)]
        captions = ["" if rng.random() < UNCONDITIONAL_SHARE else rng.choice(scene.captions) for scene in scenes]
        labels = torch.tensor([class_labels(scene) for scene in scenes])
        shapes, colours, grounds = self._restyle(labels).unbind(1)
        masks = self._masks[shapes, torch.tensor([rng.randrange(PLACEMENTS_PER_SHAPE) for _ in scenes])]
        latents = blend_colors(masks, self._codes[colours], self._codes[grounds])
        return TrainingBatch(
            latents, torch.stack([self.tokenize(text) for text in captions]), labels, torch.tensor([bool(text) for text in captions])
        )


def class_labels(scene: Scene) -> tuple[int, int, int]:
    colours = list(COLOURS)
    return list(SHAPES).index(scene.shape), colours.index(scene.colour), colours.index(scene.ground)


def training_runs(pipeline: Any) -> list[TrainingRun]:
    """First shapes at any position, to learn what they are; then near the centre, for clean outlines."""
    return [
        shapes_run(pipeline, "shapes", random_placement, STEPS),
        shapes_run(pipeline, "shapes-fine-tuning", centered_placement, FINE_TUNING_STEPS),
    ]


def shapes_run(pipeline: Any, name: str, placement: Callable[[Random], ShapePlacement], steps: int) -> TrainingRun:
    """Trains the UNet and the text encoder together."""
    import torch

    dataset, denoise = ShapesDataset(pipeline.tokenizer, placement), velocity_loss(pipeline)
    label_head = torch.nn.Linear(TEXT_WIDTH, len(SHAPES) + 2 * len(COLOURS))

    def loss(rng: Random) -> Any:
        batch = dataset.sample_batch(rng)
        text_states = pipeline.text_encoder(batch.tokens)[0]
        return denoise(batch.latents, text_states) + TEXT_LOSS_WEIGHT * text_encoder_loss(label_head(text_states[:, -1]), batch)

    trainable: Iterable[Any] = (*pipeline.unet.parameters(), *pipeline.text_encoder.parameters(), *label_head.parameters())
    return TrainingRun(name, list(trainable), loss, steps)


def text_encoder_loss(logits: Any, batch: TrainingBatch) -> Any:
    import torch

    parts = logits[batch.has_caption].split((len(SHAPES), len(COLOURS), len(COLOURS)), dim=1)
    labels = batch.labels[batch.has_caption].unbind(1)
    return sum(torch.nn.functional.cross_entropy(part, label) for part, label in zip(parts, labels, strict=True))


def velocity_loss(pipeline: Any) -> Any:
    """A function of latents and text states: the loss of the UNet's velocities. A quarter of the timesteps are very noisy ones."""
    import torch
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)

    def loss(latents: Any, text_states: Any) -> Any:
        timesteps, early = torch.randint(0, 1000, (len(latents),)), len(latents) // 4
        timesteps[:early] = torch.randint(850, 1000, (early,))
        noise = torch.randn_like(latents)
        noisy, velocity = scheduler.add_noise(latents, noise, timesteps), scheduler.get_velocity(latents, noise, timesteps)
        return torch.nn.functional.mse_loss(pipeline.unet(noisy, timesteps, text_states)[0], velocity)

    return loss
