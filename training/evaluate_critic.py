"""The critic's examination: posters that it has not seen, asked through the real engine, alone and beside each other."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel

from actors.engines.language.engine import VlmEngine, open_engine
from actors.engines.language.requests import VlmOptions, VlmRequest
from actors.engines.process.protocol import EngineHost, Finished
from actors.vision.prompts import JUDGE_PROMPT
from actors.vision.schema_limits import max_json_bytes
from contracts.verdict import AdVerdictSchema, ImageVerdictSchema
from training.critic_examples import random_target_scene, validate_example
from training.posters import Poster, draw_poster

EVALUATION_SEED = 1_000_003
"""No lesson was drawn from it."""
SCORED_FIELDS = ("on_brief", "occlusion", "contrast_ok", "cta_present")


def evaluate_critic(model: Path, poster_count: int) -> dict[str, Any]:
    """The share of right answers, by field; and of verdicts that are the same alone as in a batch."""
    dice = Random(EVALUATION_SEED)
    drawn = [draw_poster(dice) for _ in range(poster_count)]
    with TemporaryDirectory() as spool:
        engine = open_engine(
            VlmOptions(str(model), device="cpu", quantization="none"), EngineHost(lambda *_: None, lambda: None, Path(spool))
        )
        asked = [build_request(JUDGE_PROMPT, poster, AdVerdictSchema) for poster in drawn]
        said = [AdVerdictSchema.model_validate_json(text) for text in run_requests(engine, asked)]
        alone = [text for one in asked[:16] for text in run_requests(engine, [one])]
        looked, always_no = evaluate_relevance(engine, drawn, dice)
    right = {
        name: accuracy([getattr(a, name) == getattr(b.expected_verdict, name) for a, b in zip(said, drawn, strict=True)])
        for name in SCORED_FIELDS
    }
    agree = accuracy([one == other for one, other in zip(alone, run_requests(engine, asked[:16]), strict=True)])
    return {"posters": poster_count, "right": right | looked, "always_no": always_no, "alone_as_beside_others": agree}


def evaluate_relevance(engine: VlmEngine, posters: Sequence[Poster], rng: Random) -> tuple[dict[str, float], float]:
    """How often the critic knows whether a picture shows anything, and whether what its text promises; and the share of texts that lie."""
    wanted, asked = [], []
    for poster in posters:
        lesson = validate_example(poster, random_target_scene(poster, rng), rng)
        wanted.append(ImageVerdictSchema.model_validate_json(lesson.answer))
        asked.append(build_request(lesson.question, poster, ImageVerdictSchema))
    pairs = list(zip(wanted, (ImageVerdictSchema.model_validate_json(text) for text in run_requests(engine, asked)), strict=True))
    right = {
        "is_valid": accuracy([a.is_valid == b.is_valid for a, b in pairs]),
        "relevance_score": accuracy([(a.relevance_score > 0.5) == (b.relevance_score > 0.5) for a, b in pairs]),
    }
    return right, accuracy([a.relevance_score < 0.5 for a, _ in pairs])


def build_request(text: str, poster: Poster, verdict_schema: type[BaseModel]) -> VlmRequest:
    file = io.BytesIO()
    poster.pixels.save(file, "PNG")
    longest = max_json_bytes(verdict_schema)
    return VlmRequest(text, file.getvalue(), longest, schema=json.dumps(verdict_schema.model_json_schema()), max_answer_bytes=longest)


def run_requests(engine: VlmEngine, requests: Sequence[VlmRequest]) -> list[str]:
    """All at once; the engine takes as many beside each other as it has rows."""
    for ticket, one in enumerate(requests):
        engine.submit(ticket, one)
    said: dict[int, str] = {}
    while len(said) < len(requests):
        for event in engine.tick():
            if isinstance(event, Finished):
                said[event.request_id] = event.result.text
    return [said[ticket] for ticket in range(len(requests))]


def accuracy(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
