"""The worker's own safety checker, in its real class with random weights, from a checkpoint and from a folder of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from actors.engines.moderation.safety_checker import SafetyChecker, limit_ratio

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

NEVER, ALWAYS = 2.0, -2.0
"""Thresholds of the cosine similarity."""


@pytest.fixture
def write_checker(tmp_path: Path) -> Callable[[float], Path]:
    """Writes a checkpoint's folder, of which only the checker is there, that flags above a threshold."""

    def write(threshold: float) -> Path:
        import torch
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionConfig

        vision = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
        )
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=16))
        torch.nn.init.normal_(checker.concept_embeds)
        torch.nn.init.constant_(checker.concept_embeds_weights, threshold)
        torch.nn.init.constant_(checker.special_care_embeds_weights, NEVER)
        folder = tmp_path / f"checkpoint-{threshold:g}"
        checker.save_pretrained(folder / "safety_checker", safe_serialization=True)
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        CLIPImageProcessor(**sizes).save_pretrained(folder / "feature_extractor")
        return folder

    return write


@pytest.mark.parametrize(("threshold", "score"), [(NEVER, 0.0), (ALWAYS, 1.0)])
def test_picture_is_flagged_above_the_threshold(write_checker: Callable[[float], Path], threshold: float, score: float) -> None:
    checker = SafetyChecker(write_checker(threshold))
    assert checker.scores(Image.new("RGB", (64, 48), "red")) == {"unsafe": score}


def test_folder_of_the_checker_alone_is_read_and_pictures_of_any_size(write_checker: Callable[[float], Path], tmp_path: Path) -> None:
    folder, alone = write_checker(ALWAYS), tmp_path / "alone"
    shutil.copytree(folder / "safety_checker", alone)
    shutil.copy(folder / "feature_extractor" / "preprocessor_config.json", alone)
    checker = SafetyChecker(alone)
    assert [checker.scores(Image.new("RGB", size))["unsafe"] for size in ((1, 1), (1, 1024), (1024, 1))] == [1.0, 1.0, 1.0]


def test_folder_without_checker_raises_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MODERATION_CHECKER is no safety checker: .*config\.json.*preprocessor_config\.json is missing"):
        SafetyChecker(tmp_path)


@pytest.mark.parametrize(("size", "limited"), [((64, 48), (64, 48)), ((1, 1), (1, 1)), ((1, 1024), (128, 1024)), ((1000, 9), (1000, 125))])
def test_narrow_picture_gets_black_beside_it(size: tuple[int, int], limited: tuple[int, int]) -> None:
    """Else the processor would scale a picture of 1 × 1024 pixels to 224 × 229,376."""
    assert limit_ratio(Image.new("RGB", size)).size == limited
