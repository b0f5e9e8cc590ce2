"""The trained toy through the real engine: the answer itself tells a wrong scheduler, a wrong prompt or a lost LoRA."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.engines.diffusers_image import DiffusersImage
from actors.engines.image_work import ImageWork, LoraFile
from ops.models import PAINTER
from ops.tiny.measuring import asked_scenes, in_style, seen
from ops.tiny.scenes import Scene
from tests.unit.actors.engines.easel import Stock, apart, draw, open_easel

# diffusers' own: it makes an array of a tensor when time steps are spaced from the end.
pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

RED_ON_BLUE = "a red circle on a blue background"


@pytest.fixture
def painter(tiny: dict[str, Path], tmp_path: Path) -> Iterator[DiffusersImage]:
    engine = open_easel({"tiny-sd": tiny[PAINTER]}, tmp_path / "spool")
    yield engine
    engine.close()


def asked(number: int, prompt: str, **how: object) -> ImageWork:
    return ImageWork(**({"prompt": prompt, "seed": number, "steps": 20, "width": 512, "height": 512} | how))  # type: ignore[arg-type]


def colours(engine: DiffusersImage, works: dict[int, ImageWork]) -> dict[int, tuple[str | None, str]]:
    found = {number: seen(pictures[0]) for number, pictures in draw(engine, works).items()}
    return {number: (one.colour, one.ground) for number, one in found.items()}


def of(scene: Scene) -> tuple[str | None, str]:
    return scene.colour, scene.ground


@pytest.mark.parametrize("prompt", [RED_ON_BLUE, "파란 배경에 빨간 원"])
def test_nine_of_ten_seeds_have_the_colours_of_the_prompt(painter: DiffusersImage, prompt: str) -> None:
    found = colours(painter, {seed: asked(seed, prompt) for seed in range(1, 11)})
    assert list(found.values()).count(("red", "blue")) >= 9, found


def test_scenes_of_all_kinds_come_out_beside_each_other(painter: DiffusersImage) -> None:
    scenes = dict(enumerate(asked_scenes(20, seed=4), start=1))
    found = colours(painter, {number: asked(number, caption) for number, (_, caption) in scenes.items()})
    assert sum(found[number] == of(scene) for number, (scene, _) in scenes.items()) >= 18, found


@pytest.mark.parametrize("scheduler", ["dpm++", "euler", "ddim", "unipc"])
def test_each_scheduler_draws_it(painter: DiffusersImage, scheduler: str) -> None:
    found = colours(painter, {seed: asked(seed, RED_ON_BLUE, scheduler=scheduler, steps=30) for seed in range(1, 5)})
    assert list(found.values()).count(("red", "blue")) >= 3, found


def test_each_row_has_the_style_of_its_own_lora(painter: DiffusersImage, tiny: dict[str, Path]) -> None:
    """All in one batch: plain, ink and night."""
    scene = Scene("star", "yellow", "purple")
    styles = [None, "ink", "night"] * 3
    works = {number: asked(number, scene.captions[0], lora=style and lora(tiny, style)) for number, style in enumerate(styles, start=1)}
    found = colours(painter, works)
    right = [found[number] == of(in_style(scene, style)) for number, style in enumerate(styles, start=1)]
    assert sum(right) >= 8, found


def lora(tiny: dict[str, Path], style: str) -> LoraFile:
    file = tiny[f"tiny-{style}"]
    return LoraFile(file, hashlib.sha256(file.read_bytes()).hexdigest(), 1.0, style)


def test_it_is_the_stock_pipelines_picture(painter: DiffusersImage, tiny: dict[str, Path]) -> None:
    work = asked(3, RED_ON_BLUE)
    assert apart(draw(painter, {1: work})[1], Stock(tiny[PAINTER]).draw(work)) <= 1


def test_a_side_that_no_latent_fits_is_cut_to_size(painter: DiffusersImage) -> None:
    """A latent is 32 pixels wide here; the order's size is the picture's."""
    pictures = draw(painter, {1: asked(1, RED_ON_BLUE, width=520, height=392)})[1]
    assert pictures[0].shape == (392, 520, 3)
