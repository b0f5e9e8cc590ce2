"""The checkpoint's own safety checker, in its real class: images are flagged, never changed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.process.protocol import Finished
from bus.errors import PermanentError
from tests.support.engine_fixture import max_pixel_difference, open_image_engine, output_images, run_to_end

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

NEVER, ALWAYS = 2.0, -2.0
"""Thresholds of the cosine similarity."""


@pytest.fixture
def with_checker(tiny_models: dict[str, Path], tmp_path: Path) -> Callable[[float], dict[str, Path]]:
    """Writes the tiny checkpoint with a tiny checker that flags above a threshold."""

    def write(threshold: float) -> dict[str, Path]:
        import torch
        from diffusers import StableDiffusionPipeline
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionConfig

        vision = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
        )
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=16))
        torch.nn.init.normal_(checker.concept_embeds)
        torch.nn.init.constant_(checker.concept_embeds_weights, threshold)
        torch.nn.init.constant_(checker.special_care_embeds_weights, NEVER)
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        pipeline = StableDiffusionPipeline.from_pretrained(
            tiny_models["tiny-sd"], safety_checker=checker, feature_extractor=CLIPImageProcessor(**sizes)
        )
        folder = tmp_path / f"checked-{threshold:g}"
        pipeline.save_pretrained(folder, safe_serialization=True)
        return {"tiny-sd": folder}

    return write


REQUEST = DiffusionRequest("a cat", 3, width=64, height=64, steps=4, count=2)


@pytest.mark.parametrize(("threshold", "flagged"), [(NEVER, (False, False)), (ALWAYS, (True, True))])
def test_flagged_image_is_marked_and_not_blacked_out(
    with_checker: Callable[[float], dict[str, Path]],
    tiny_models: dict[str, Path],
    tmp_path: Path,
    threshold: float,
    flagged: tuple[bool, bool],
) -> None:
    drawn = {}
    for name, models, enabled in (("plain", tiny_models, False), ("checked", with_checker(threshold), True)):
        engine = open_image_engine(models, tmp_path / name, safety_checker=enabled)
        engine.submit(1, REQUEST)
        event = run_to_end(engine, [1])[1]
        engine.close()
        assert isinstance(event, Finished), event
        assert event.result.flagged == (flagged if enabled else ())
        drawn[name] = output_images(event)
    assert max_pixel_difference(drawn["plain"], drawn["checked"]) == 0
    assert drawn["checked"][0].max() > 0


def test_safety_checker_is_not_loaded_when_disabled(with_checker: Callable[[float], dict[str, Path]], tmp_path: Path) -> None:
    engine = open_image_engine(with_checker(ALWAYS), tmp_path / "off")
    engine.submit(1, REQUEST)
    assert run_to_end(engine, [1])[1].result.flagged == ()  # type: ignore[union-attr]
    assert engine.models.default().family.pipeline.safety_checker is None
    engine.close()


def test_enabled_safety_checker_that_checkpoint_lacks_raises(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Otherwise unflagged images would seem to be checked."""
    with pytest.raises(PermanentError) as caught:
        open_image_engine(tiny_models, tmp_path / "none", safety_checker=True)
    assert caught.value.code == "safety-checker-missing"
