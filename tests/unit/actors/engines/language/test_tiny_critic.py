"""The trained tiny critic in the real engine: a wrong prompt template, padding side or image size makes its verdicts wrong."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from actors.engines.language.requests import VlmOptions
from actors.engines.language.vision_model import VlmEngine, open_engine
from actors.vision.prompts import JUDGE_PROMPT
from contracts.verdict import AdVerdictSchema, ImageVerdictSchema
from ops.local.tiny_models import TINY_VLM
from tests.support.engine_fixture import silent_host
from training.critic_examples import random_target_scene, validate_example
from training.evaluate_critic import build_request, run_requests
from training.posters import Poster, draw_poster
from training.scenes import random_scene

pytestmark = pytest.mark.models

MINIMUM_CORRECT = {"on_brief": 23, "cta_present": 23, "occlusion": 18, "contrast_ok": 18}
"""Of 24 posters."""


@pytest.fixture
def critic(tiny_models: dict[str, Path], tmp_path: Path) -> Iterator[VlmEngine]:
    options = VlmOptions(str(tiny_models[TINY_VLM]), device="cpu", quantization="none")
    engine = open_engine(options, silent_host(tmp_path))
    yield engine
    engine.close()


def draw_posters(seed: int, count: int, *, without_text: bool = False) -> list[Poster]:
    rng = Random(seed)
    return [draw_poster(rng, without_text=without_text) for _ in range(count)]


def test_tiny_critic_judges_poster_faults(critic: VlmEngine) -> None:
    posters = draw_posters(71, 24)
    answers = run_requests(critic, [build_request(JUDGE_PROMPT, poster, AdVerdictSchema) for poster in posters])
    verdicts = [AdVerdictSchema.model_validate_json(text) for text in answers]
    for name, minimum in MINIMUM_CORRECT.items():
        correct = sum(
            getattr(verdict, name) == getattr(poster.expected_verdict, name) for verdict, poster in zip(verdicts, posters, strict=True)
        )
        assert correct >= minimum, f"{name}: {correct} of 24"


def test_tiny_critic_detects_empty_image(critic: VlmEngine) -> None:
    """With the prompt of the validate step, whose images have no text yet."""
    rng = Random(5)
    posters = draw_posters(72, 24, without_text=True)
    prompts = [validate_example(poster, poster.scene or random_scene(rng), rng).question for poster in posters]
    requests = [build_request(prompt, poster, ImageVerdictSchema) for prompt, poster in zip(prompts, posters, strict=True)]
    verdicts = [ImageVerdictSchema.model_validate_json(text) for text in run_requests(critic, requests)]
    correct = sum(verdict.is_valid == (poster.scene is not None) for verdict, poster in zip(verdicts, posters, strict=True))
    assert correct >= 22, f"{correct} of 24"


def test_tiny_critic_scores_image_text_relevance(critic: VlmEngine) -> None:
    """Half of the texts that do not fit differ in one word."""
    rng = Random(6)
    posters = draw_posters(74, 32, without_text=True)
    examples = [validate_example(poster, random_target_scene(poster, rng), rng) for poster in posters]
    requests = [build_request(example.question, poster, ImageVerdictSchema) for example, poster in zip(examples, posters, strict=True)]
    verdicts = [ImageVerdictSchema.model_validate_json(text) for text in run_requests(critic, requests)]
    expected = [all(true for _, true in example.claims) for example in examples]
    correct = sum((verdict.relevance_score > 0.5) == fits for verdict, fits in zip(verdicts, expected, strict=True))
    assert correct >= 27, f"{correct} of 32"


def test_tiny_critic_answer_is_independent_of_batch(critic: VlmEngine) -> None:
    requests = [build_request(JUDGE_PROMPT, poster, AdVerdictSchema) for poster in draw_posters(73, 8)]
    assert [text for request in requests for text in run_requests(critic, [request])] == run_requests(critic, requests)
