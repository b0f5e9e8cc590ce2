"""The critic's examination: posters that it has not seen, asked through the real engine, alone and beside each other."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel

from actors.engines.protocol import Finished, Lifeline
from actors.engines.transformers_vlm import VlmEngine, open_engine
from actors.engines.vlm import Question, VlmOptions
from actors.seeing.bounds import longest_bytes
from actors.seeing.prompts import JUDGE_TEXT
from contracts.verdict import AdOpinion, ImageOpinion
from ops.tiny.lessons import any_meant, suiting
from ops.tiny.posters import Poster, draw_poster

SEED = 1_000_003
"""No lesson was drawn from it."""
ANSWERS = ("on_brief", "occlusion", "contrast_ok", "cta_present")


def examined(model: Path, posters: int) -> dict[str, Any]:
    """The share of right answers, by field; and of verdicts that are the same alone as in a batch."""
    dice = Random(SEED)
    drawn = [draw_poster(dice) for _ in range(posters)]
    with TemporaryDirectory() as spool:
        engine = open_engine(
            VlmOptions(str(model), device="cpu", quantization="none"), Lifeline(lambda *_: None, lambda: None, Path(spool))
        )
        asked = [question(JUDGE_TEXT, poster, AdOpinion) for poster in drawn]
        said = [AdOpinion.model_validate_json(text) for text in ask(engine, asked)]
        alone = [text for one in asked[:16] for text in ask(engine, [one])]
        looked, always_no = relevance(engine, drawn, dice)
    right = {name: share([getattr(a, name) == getattr(b.opinion, name) for a, b in zip(said, drawn, strict=True)]) for name in ANSWERS}
    agree = share([one == other for one, other in zip(alone, ask(engine, asked[:16]), strict=True)])
    return {"posters": posters, "right": right | looked, "always_no": always_no, "alone_as_beside_others": agree}


def relevance(engine: VlmEngine, drawn: Sequence[Poster], dice: Random) -> tuple[dict[str, float], float]:
    """How often the critic knows whether a picture shows anything, and whether what its text promises; and the share of texts that lie."""
    wanted, asked = [], []
    for poster in drawn:
        lesson = suiting(poster, any_meant(poster, dice), dice)
        wanted.append(ImageOpinion.model_validate_json(lesson.answer))
        asked.append(question(lesson.question, poster, ImageOpinion))
    pairs = list(zip(wanted, (ImageOpinion.model_validate_json(text) for text in ask(engine, asked)), strict=True))
    right = {
        "is_valid": share([a.is_valid == b.is_valid for a, b in pairs]),
        "relevance_score": share([(a.relevance_score > 0.5) == (b.relevance_score > 0.5) for a, b in pairs]),
    }
    return right, share([a.relevance_score < 0.5 for a, _ in pairs])


def question(text: str, poster: Poster, opinion: type[BaseModel]) -> Question:
    file = io.BytesIO()
    poster.pixels.save(file, "PNG")
    longest = longest_bytes(opinion)
    return Question(text, file.getvalue(), longest, schema=json.dumps(opinion.model_json_schema()), longest_bytes=longest)


def ask(engine: VlmEngine, questions: Sequence[Question]) -> list[str]:
    """All at once; the engine takes as many beside each other as it has rows."""
    for ticket, one in enumerate(questions):
        engine.submit(ticket, one)
    said: dict[int, str] = {}
    while len(said) < len(questions):
        for event in engine.tick():
            if isinstance(event, Finished):
                said[event.ticket] = event.result.text
    return [said[ticket] for ticket in range(len(questions))]


def share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)
