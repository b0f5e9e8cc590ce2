"""Detecting a scene from pixels: drawn scenes are recognised, noise is not."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from training.evaluate_shapes import DetectedScene, detect_scene, expected_scene
from training.latent_codes import blend_colors, color_palette
from training.scenes import COLOURS, SHAPES, Scene, random_scene
from training.shape_masks import coverage_mask, random_placement


def draw_scene(scene: Scene, rng: Random) -> Any:
    """The exact image of a scene: height × width × 3 bytes."""
    names = list(COLOURS)
    colour, ground = (color_palette()[[names.index(name)]] for name in (scene.colour, scene.ground))
    pixels = blend_colors(coverage_mask(scene.shape, random_placement(rng), 1)[None], colour, ground)[0]
    return ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_scene_is_detected(shape: str) -> None:
    rng = Random(shape)
    for _ in range(3):
        scene = replace(random_scene(rng), shape=shape)
        assert detect_scene(draw_scene(scene, rng)) == DetectedScene(shape, scene.colour, scene.ground)


def test_empty_background_has_no_shape() -> None:
    assert detect_scene(torch.full((512, 512, 3), 250).byte().numpy()) == DetectedScene(None, None, "white")


def test_noise_is_not_detected_as_scene() -> None:
    noise = torch.randint(0, 256, (512, 512, 3), generator=torch.Generator().manual_seed(3)).byte().numpy()
    expected = Scene("star", "red", "blue")
    detected = detect_scene(noise)
    assert (detected.shape, detected.colour, detected.ground) != (expected.shape, expected.colour, expected.ground)


def test_style_defines_expected_scene() -> None:
    scene = Scene("moon", "black", "pink")
    assert expected_scene(scene, "ink") == Scene("moon", "black", "white")
    assert expected_scene(scene, "night") == Scene("moon", "white", "black")
    assert expected_scene(scene, "neat") == expected_scene(scene, None) == scene
