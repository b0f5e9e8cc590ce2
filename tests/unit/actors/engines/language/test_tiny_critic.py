"""The trained critic through the real engine: a wrong frame, padding side or picture size makes its verdicts wrong."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from actors.engines.language.engine import VlmEngine, open_engine
from actors.engines.language.requests import VlmOptions
from actors.engines.process.protocol import EngineHost
from actors.vision.prompts import JUDGE_PROMPT
from contracts.verdict import AdVerdictSchema, ImageVerdictSchema
from ops.local.tiny_models import TINY_VLM
from training.critic_examples import random_target_scene, validate_example
from training.evaluate_critic import build_request, run_requests
from training.posters import Poster, draw_poster
from training.scenes import random_scene

pytestmark = pytest.mark.models


@pytest.fixture
def critic(tiny_models: dict[str, Path], tmp_path: Path) -> Iterator[VlmEngine]:
    options = VlmOptions(str(tiny_models[TINY_VLM]), device="cpu", quantization="none")
    engine = open_engine(options, EngineHost(lambda *_: None, lambda: None, tmp_path))
    yield engine
    engine.close()


def posters(seed: int, count: int, *, bare: bool = False) -> list[Poster]:
    dice = Random(seed)
    return [draw_poster(dice, without_text=bare) for _ in range(count)]


def test_tiny_critic_judges_poster_faults(critic: VlmEngine) -> None:
    drawn = posters(71, 24)
    said = [
        AdVerdictSchema.model_validate_json(text)
        for text in run_requests(critic, [build_request(JUDGE_PROMPT, one, AdVerdictSchema) for one in drawn])
    ]
    for name, least in LEAST_RIGHT.items():
        right = sum(getattr(a, name) == getattr(b.expected_verdict, name) for a, b in zip(said, drawn, strict=True))
        assert right >= least, f"{name}: {right} of 24"


LEAST_RIGHT = {"on_brief": 23, "cta_present": 23, "occlusion": 18, "contrast_ok": 18}


def test_tiny_critic_detects_empty_image(critic: VlmEngine) -> None:
    """As the validate step asks it, before there is a text on the picture."""
    dice = Random(5)
    drawn = posters(72, 24, bare=True)
    asked = [build_request(validate_example(one, one.scene or random_scene(dice), dice).question, one, ImageVerdictSchema) for one in drawn]
    said = [ImageVerdictSchema.model_validate_json(text) for text in run_requests(critic, asked)]
    right = sum(a.is_valid == (b.scene is not None) for a, b in zip(said, drawn, strict=True))
    assert right >= 22, f"{right} of 24"


def test_tiny_critic_scores_image_text_relevance(critic: VlmEngine) -> None:
    """Half of the texts that do not fit differ in one word."""
    dice = Random(6)
    drawn = posters(74, 32, bare=True)
    lessons = [validate_example(one, random_target_scene(one, dice), dice) for one in drawn]
    said = run_requests(
        critic, [build_request(lesson.question, one, ImageVerdictSchema) for lesson, one in zip(lessons, drawn, strict=True)]
    )
    pairs = [
        (ImageVerdictSchema.model_validate_json(text), all(true for _, true in one.claims)) for text, one in zip(said, lessons, strict=True)
    ]
    right = sum((opinion.relevance_score > 0.5) == fits for opinion, fits in pairs)
    assert right >= 27, f"{right} of 32"


def test_tiny_critic_answer_is_independent_of_batch(critic: VlmEngine) -> None:
    asked = [build_request(JUDGE_PROMPT, one, AdVerdictSchema) for one in posters(73, 8)]
    assert [text for one in asked for text in run_requests(critic, [one])] == run_requests(critic, asked)
