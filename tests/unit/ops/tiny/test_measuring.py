"""A picture is judged by its pixels: what code draws is recognised, and what is wrong is seen to be."""

from random import Random
from typing import Any

import pytest
import torch

from ops.tiny.codes import mixed, palette
from ops.tiny.drawing import any_place, cover
from ops.tiny.measuring import Seen, in_style, seen
from ops.tiny.scenes import COLOURS, SHAPES, Scene, any_scene


def drawn(scene: Scene, dice: Random) -> Any:
    """The picture as it should be: height × width × 3, bytes."""
    names = list(COLOURS)
    colour, ground = (palette()[[names.index(name)]] for name in (scene.colour, scene.ground))
    pixels = mixed(cover(scene.shape, any_place(dice), 1)[None], colour, ground)[0]
    return ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawn_scene_is_recognised(shape: str) -> None:
    dice = Random(shape)
    for _ in range(3):
        any_one = any_scene(dice)
        scene = Scene(shape, any_one.colour, any_one.ground)
        assert seen(drawn(scene, dice)) == Seen(shape, scene.colour, scene.ground)


def test_an_empty_ground_has_no_shape() -> None:
    assert seen(torch.full((512, 512, 3), 250).byte().numpy()) == Seen(None, None, "white")


def test_noise_is_no_scene() -> None:
    noise = torch.randint(0, 256, (512, 512, 3), generator=torch.Generator().manual_seed(3)).byte().numpy()
    wanted = Scene("star", "red", "blue")
    found = seen(noise)
    assert (found.shape, found.colour, found.ground) != (wanted.shape, wanted.colour, wanted.ground)


def test_a_style_says_what_comes_out() -> None:
    scene = Scene("moon", "black", "pink")
    assert in_style(scene, "ink") == Scene("moon", "black", "white")
    assert in_style(scene, "night") == Scene("moon", "white", "black")
    assert in_style(scene, "neat") == in_style(scene, None) == scene
