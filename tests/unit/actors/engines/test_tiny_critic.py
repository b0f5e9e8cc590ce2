"""The trained critic through the real engine: a wrong frame, padding side or picture size makes its verdicts wrong."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from actors.engines.protocol import Lifeline
from actors.engines.transformers_vlm import VlmEngine, open_engine
from actors.engines.vlm import VlmOptions
from actors.seeing.prompts import JUDGE_TEXT
from contracts.verdict import AdOpinion, ImageOpinion
from ops.models import CRITIC
from ops.tiny.examining import ask, question
from ops.tiny.lessons import any_meant, suiting
from ops.tiny.posters import Poster, draw_poster
from ops.tiny.scenes import any_scene

pytestmark = pytest.mark.models


@pytest.fixture
def critic(tiny: dict[str, Path], tmp_path: Path) -> Iterator[VlmEngine]:
    options = VlmOptions(str(tiny[CRITIC]), device="cpu", quantization="none")
    engine = open_engine(options, Lifeline(lambda *_: None, lambda: None, tmp_path))
    yield engine
    engine.close()


def posters(seed: int, count: int, *, bare: bool = False) -> list[Poster]:
    dice = Random(seed)
    return [draw_poster(dice, bare=bare) for _ in range(count)]


def test_it_sees_what_is_wrong_with_a_poster(critic: VlmEngine) -> None:
    drawn = posters(71, 24)
    said = [AdOpinion.model_validate_json(text) for text in ask(critic, [question(JUDGE_TEXT, one, AdOpinion) for one in drawn])]
    for name, least in LEAST_RIGHT.items():
        right = sum(getattr(a, name) == getattr(b.opinion, name) for a, b in zip(said, drawn, strict=True))
        assert right >= least, f"{name}: {right} of 24"


LEAST_RIGHT = {"on_brief": 23, "cta_present": 23, "occlusion": 18, "contrast_ok": 18}


def test_it_sees_whether_a_picture_shows_anything(critic: VlmEngine) -> None:
    """As the validate step asks it, before there is a text on the picture."""
    dice = Random(5)
    drawn = posters(72, 24, bare=True)
    asked = [question(suiting(one, one.scene or any_scene(dice), dice).question, one, ImageOpinion) for one in drawn]
    said = [ImageOpinion.model_validate_json(text) for text in ask(critic, asked)]
    right = sum(a.is_valid == (b.scene is not None) for a, b in zip(said, drawn, strict=True))
    assert right >= 22, f"{right} of 24"


def test_it_sees_whether_a_picture_fits_its_text(critic: VlmEngine) -> None:
    """Half of the texts that do not fit differ in one word."""
    dice = Random(6)
    drawn = posters(74, 32, bare=True)
    lessons = [suiting(one, any_meant(one, dice), dice) for one in drawn]
    said = ask(critic, [question(lesson.question, one, ImageOpinion) for lesson, one in zip(lessons, drawn, strict=True)])
    pairs = [(ImageOpinion.model_validate_json(text), all(true for _, true in one.claims)) for text, one in zip(said, lessons, strict=True)]
    right = sum((opinion.relevance_score > 0.5) == fits for opinion, fits in pairs)
    assert right >= 27, f"{right} of 32"


def test_it_says_the_same_alone_as_beside_others(critic: VlmEngine) -> None:
    asked = [question(JUDGE_TEXT, one, AdOpinion) for one in posters(73, 8)]
    assert [text for one in asked for text in ask(critic, [one])] == ask(critic, asked)
