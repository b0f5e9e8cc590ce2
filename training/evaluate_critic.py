"""Evaluates tiny-critic on posters outside its training set, through the real engine, alone and in a batch."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel

from actors.engines.language.requests import VlmOptions, VlmRequest
from actors.engines.language.vision_model import VlmEngine, open_engine
from actors.engines.process.protocol import EngineHost, Finished
from actors.vision.prompts import JUDGE_PROMPT
from actors.vision.schema_limits import max_json_bytes
from contracts.verdict import AdVerdictSchema, ImageVerdictSchema
from training.critic_examples import random_target_scene, validate_example
from training.posters import Poster, draw_poster

EVALUATION_SEED = 1_000_003
"""Not used for training."""
SCORED_FIELDS = ("on_brief", "occlusion", "contrast_ok", "cta_present")


def evaluate_critic(model: Path, poster_count: int) -> dict[str, Any]:
    """The share of correct answers, by field, and of verdicts that are the same alone as in a batch."""
    rng = Random(EVALUATION_SEED)
    posters = [draw_poster(rng) for _ in range(poster_count)]
    with TemporaryDirectory() as shm_dir:
        engine = open_engine(
            VlmOptions(str(model), device="cpu", quantization="none"), EngineHost(lambda *_: None, lambda: None, Path(shm_dir))
        )
        requests = [build_request(JUDGE_PROMPT, poster, AdVerdictSchema) for poster in posters]
        verdicts = [AdVerdictSchema.model_validate_json(text) for text in run_requests(engine, requests)]
        alone = [text for request in requests[:16] for text in run_requests(engine, [request])]
        relevance, always_no = evaluate_relevance(engine, posters, rng)
    right = {
        name: accuracy([getattr(a, name) == getattr(b.expected_verdict, name) for a, b in zip(verdicts, posters, strict=True)])
        for name in SCORED_FIELDS
    }
    agreement = accuracy([one == other for one, other in zip(alone, run_requests(engine, requests[:16]), strict=True)])
    return {"posters": poster_count, "right": right | relevance, "always_no": always_no, "alone_as_beside_others": agreement}


def evaluate_relevance(engine: VlmEngine, posters: Sequence[Poster], rng: Random) -> tuple[dict[str, float], float]:
    """The accuracy of `is_valid` and `relevance_score`, and the share of posters whose text does not match."""
    expected, requests = [], []
    for poster in posters:
        example = validate_example(poster, random_target_scene(poster, rng), rng)
        expected.append(ImageVerdictSchema.model_validate_json(example.answer))
        requests.append(build_request(example.question, poster, ImageVerdictSchema))
    pairs = list(zip(expected, (ImageVerdictSchema.model_validate_json(text) for text in run_requests(engine, requests)), strict=True))
    right = {
        "is_valid": accuracy([a.is_valid == b.is_valid for a, b in pairs]),
        "relevance_score": accuracy([(a.relevance_score > 0.5) == (b.relevance_score > 0.5) for a, b in pairs]),
    }
    return right, accuracy([a.relevance_score < 0.5 for a, _ in pairs])


def build_request(text: str, poster: Poster, verdict_schema: type[BaseModel]) -> VlmRequest:
    file = io.BytesIO()
    poster.pixels.save(file, "PNG")
    max_bytes = max_json_bytes(verdict_schema)
    return VlmRequest(
        text, (file.getvalue(),), max_bytes, schema=json.dumps(verdict_schema.model_json_schema()), max_answer_bytes=max_bytes
    )


def run_requests(engine: VlmEngine, requests: Sequence[VlmRequest]) -> list[str]:
    """The answers, in order. All are submitted at once; the engine batches as many as it has rows."""
    for request_id, request in enumerate(requests):
        engine.submit(request_id, request)
    answers: dict[int, str] = {}
    while len(answers) < len(requests):
        for event in engine.tick():
            if isinstance(event, Finished):
                answers[event.request_id] = event.result.text
    return [answers[request_id] for request_id in range(len(requests))]


def accuracy(correct: Sequence[bool]) -> float:
    return sum(correct) / len(correct)
