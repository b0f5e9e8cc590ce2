"""The tiny painter: Stable Diffusion's own classes, trained to draw the shape, the colour and the ground that the prompt names.

16 × 16 latents for 512 × 512 pixels. It predicts velocities, and its noise schedule ends in pure noise: flat grounds come out right so.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ops.tiny.codes import CHANNELS, PIXELS, codes, mixed
from ops.tiny.developer import build_developer
from ops.tiny.drawing import SIDE, Place, any_place, cover, near_middle
from ops.tiny.scenes import COLOURS, SHAPES, Scene, any_scene
from ops.tiny.training import Course
from ops.tiny.words import LENGTH, build_tokenizer

WIDTH = 64
BATCH, STEPS, POLISHING_STEPS = 32, 2500, 1000
PLACES = 64
"""So many pictures of each shape are drawn beforehand."""
UNASKED = 0.1
"""Share of the pictures without a caption, for the guidance."""
READING = 0.1
"""Weight of the text encoder's own lesson: its last word knows the shape and both colours."""
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Lesson:
    """Latents of a batch, the tokens of its captions, and what they say: shape, colour, ground by number. `asked`: has a caption."""

    latents: Any
    tokens: Any
    said: Any
    asked: Any


def build_painter() -> Any:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    tokenizer = build_tokenizer()
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)
    return StableDiffusionPipeline(
        vae=build_developer(), text_encoder=_reader(tokenizer), tokenizer=tokenizer, unet=_unet(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def load_painter(folder: Path) -> Any:
    """The stock pipeline, in single precision whatever the files have."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // PIXELS, in_channels=CHANNELS, out_channels=CHANNELS, layers_per_block=1,
        block_out_channels=(32, 64, 96), norm_num_groups=8, cross_attention_dim=WIDTH, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def _reader(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


class School:
    """Pictures and captions for the painter. `place`: where the shapes lie; `restyled`: other numbers than the captions say."""

    def __init__(
        self, tokenizer: Any, place: Callable[[Random], Place] = any_place, restyled: Callable[[Any], Any] = lambda said: said
    ) -> None:
        import torch

        dice = Random(0)
        self._bits, self._restyled, self._tokenizer = codes(), restyled, tokenizer
        drawn = [torch.stack([cover(shape, place(dice), PIXELS, fine=0.25) for _ in range(PLACES)]) for shape in SHAPES]
        self._covers = torch.stack(drawn)
        self._known: dict[str, Any] = {}

    def tokens(self, text: str) -> Any:
        import torch

        if text not in self._known:
            self._known[text] = torch.tensor(self._tokenizer(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids)
        return self._known[text]

    def lesson(self, dice: Random) -> Lesson:
        import torch

        scenes = [any_scene(dice) for _ in range(BATCH)]
        captions = ["" if dice.random() < UNASKED else dice.choice(scene.captions) for scene in scenes]
        said = torch.tensor([numbers(scene) for scene in scenes])
        shapes, colours, grounds = self._restyled(said).unbind(1)
        covers = self._covers[shapes, torch.tensor([dice.randrange(PLACES) for _ in scenes])]
        latents = mixed(covers, self._bits[colours], self._bits[grounds])
        return Lesson(latents, torch.stack([self.tokens(text) for text in captions]), said, torch.tensor([bool(text) for text in captions]))


def numbers(scene: Scene) -> tuple[int, int, int]:
    colours = list(COLOURS)
    return list(SHAPES).index(scene.shape), colours.index(scene.colour), colours.index(scene.ground)


def courses(painter: Any) -> list[Course]:
    """Shapes anywhere first, so that it learns what they are; then near the middle, where it draws them clean."""
    return [course(painter, "painter", any_place, STEPS), course(painter, "painter-polished", near_middle, POLISHING_STEPS)]


def course(painter: Any, name: str, place: Callable[[Random], Place], steps: int) -> Course:
    """The UNet and the text encoder learn together."""
    import torch

    school, denoise = School(painter.tokenizer, place), velocity_loss(painter)
    reading = torch.nn.Linear(WIDTH, len(SHAPES) + 2 * len(COLOURS))

    def loss(dice: Random) -> Any:
        lesson = school.lesson(dice)
        read = painter.text_encoder(lesson.tokens)[0]
        return denoise(lesson.latents, read) + READING * misread(reading(read[:, -1]), lesson)

    learning: Iterable[Any] = (*painter.unet.parameters(), *painter.text_encoder.parameters(), *reading.parameters())
    return Course(name, list(learning), loss, steps)


def misread(told: Any, lesson: Lesson) -> Any:
    import torch

    parts = told[lesson.asked].split((len(SHAPES), len(COLOURS), len(COLOURS)), dim=1)
    answers = lesson.said[lesson.asked].unbind(1)
    return sum(torch.nn.functional.cross_entropy(part, answer) for part, answer in zip(parts, answers, strict=True))


def velocity_loss(painter: Any) -> Any:
    """Latents and what was read → how wrong the UNet's velocities are. A quarter of the moments lie where there is hardly a picture yet."""
    import torch
    from diffusers import DDPMScheduler

    noising = DDPMScheduler.from_config(painter.scheduler.config)

    def loss(latents: Any, read: Any) -> Any:
        moments, early = torch.randint(0, 1000, (len(latents),)), len(latents) // 4
        moments[:early] = torch.randint(850, 1000, (early,))
        noise = torch.randn_like(latents)
        noisy, velocity = noising.add_noise(latents, noise, moments), noising.get_velocity(latents, noise, moments)
        return torch.nn.functional.mse_loss(painter.unet(noisy, moments, read)[0], velocity)

    return loss
