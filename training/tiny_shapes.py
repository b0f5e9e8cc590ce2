"""The tiny painter: Stable Diffusion's own classes, trained to draw the shape, the colour and the ground that the prompt names.

16 × 16 latents for 512 × 512 pixels. It predicts velocities, and its noise schedule ends in pure noise: flat grounds come out right so.
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
"""So many pictures of each shape are drawn beforehand."""
UNCONDITIONAL_SHARE = 0.1
"""Share of the pictures without a caption, for the guidance."""
TEXT_LOSS_WEIGHT = 0.1
"""Weight of the text encoder's own lesson: its last word knows the shape and both colours."""
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
    """Latents of a batch, the tokens of its captions, and what they say: shape, colour, ground by number. `asked`: has a caption."""

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
    """The stock pipeline, in single precision whatever the files have."""
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
    """Pictures and captions for the painter. `place`: where the shapes lie; `restyled`: other numbers than the captions say."""

    def __init__(
        self,
        tokenizer: Any,
        placement: Callable[[Random], ShapePlacement] = random_placement,
        restyle: Callable[[Any], Any] = lambda said: said,
    ) -> None:
        import torch

        dice = Random(0)
        self._bits, self._restyled, self._tokenizer = color_codes(), restyle, tokenizer
        drawn = [
            torch.stack(
                [coverage_mask(shape, placement(dice), PIXELS_PER_LATENT, points_per_pixel=0.25) for _ in range(PLACEMENTS_PER_SHAPE)]
            )
            for shape in SHAPES
        ]
        self._covers = torch.stack(drawn)
        self._known: dict[str, Any] = {}

    def tokenize(self, text: str) -> Any:
        import torch

        if text not in self._known:
            self._known[text] = torch.tensor(self._tokenizer(text, padding="max_length", max_length=MAX_LENGTH, truncation=True).input_ids)
        return self._known[text]

    def sample_batch(self, rng: Random) -> TrainingBatch:
        import torch

        scenes = [random_scene(rng) for _ in range(BATCH)]
        captions = ["" if rng.random() < UNCONDITIONAL_SHARE else rng.choice(scene.captions) for scene in scenes]
        said = torch.tensor([class_labels(scene) for scene in scenes])
        shapes, colours, grounds = self._restyled(said).unbind(1)
        covers = self._covers[shapes, torch.tensor([rng.randrange(PLACEMENTS_PER_SHAPE) for _ in scenes])]
        latents = blend_colors(covers, self._bits[colours], self._bits[grounds])
        return TrainingBatch(
            latents, torch.stack([self.tokenize(text) for text in captions]), said, torch.tensor([bool(text) for text in captions])
        )


def class_labels(scene: Scene) -> tuple[int, int, int]:
    colours = list(COLOURS)
    return list(SHAPES).index(scene.shape), colours.index(scene.colour), colours.index(scene.ground)


def training_runs(pipeline: Any) -> list[TrainingRun]:
    """Shapes anywhere first, so that it learns what they are; then near the middle, where it draws them clean."""
    return [
        shapes_run(pipeline, "painter", random_placement, STEPS),
        shapes_run(pipeline, "painter-polished", centered_placement, FINE_TUNING_STEPS),
    ]


def shapes_run(pipeline: Any, name: str, placement: Callable[[Random], ShapePlacement], steps: int) -> TrainingRun:
    """The UNet and the text encoder learn together."""
    import torch

    school, denoise = ShapesDataset(pipeline.tokenizer, placement), velocity_loss(pipeline)
    reading = torch.nn.Linear(TEXT_WIDTH, len(SHAPES) + 2 * len(COLOURS))

    def loss(dice: Random) -> Any:
        lesson = school.sample_batch(dice)
        read = pipeline.text_encoder(lesson.tokens)[0]
        return denoise(lesson.latents, read) + TEXT_LOSS_WEIGHT * text_encoder_loss(reading(read[:, -1]), lesson)

    learning: Iterable[Any] = (*pipeline.unet.parameters(), *pipeline.text_encoder.parameters(), *reading.parameters())
    return TrainingRun(name, list(learning), loss, steps)


def text_encoder_loss(logits: Any, batch: TrainingBatch) -> Any:
    import torch

    parts = logits[batch.has_caption].split((len(SHAPES), len(COLOURS), len(COLOURS)), dim=1)
    answers = batch.labels[batch.has_caption].unbind(1)
    return sum(torch.nn.functional.cross_entropy(part, answer) for part, answer in zip(parts, answers, strict=True))


def velocity_loss(pipeline: Any) -> Any:
    """Latents and what was read → how wrong the UNet's velocities are. A quarter of the moments lie where there is hardly a picture yet."""
    import torch
    from diffusers import DDPMScheduler

    noising = DDPMScheduler.from_config(pipeline.scheduler.config)

    def loss(latents: Any, read: Any) -> Any:
        moments, early = torch.randint(0, 1000, (len(latents),)), len(latents) // 4
        moments[:early] = torch.randint(850, 1000, (early,))
        noise = torch.randn_like(latents)
        noisy, velocity = noising.add_noise(latents, noise, moments), noising.get_velocity(latents, noise, moments)
        return torch.nn.functional.mse_loss(pipeline.unet(noisy, moments, read)[0], velocity)

    return loss
