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
from ops.tiny.critic import suiting
from ops.tiny.examining import ask, question
from ops.tiny.posters import Poster, draw_poster
from ops.tiny.scenes import Scene, any_scene

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


def test_it_knows_whether_a_picture_shows_what_its_text_promises(critic: VlmEngine) -> None:
    """Each picture with a text about it, and with one about another scene."""
    dice = Random(5)
    drawn = [one for one in posters(72, 24, bare=True) if one.scene]
    for meant in (lambda own: own, lambda own: other(own, dice)):
        asked = [suiting(one, meant(one.scene), dice) for one in drawn]
        said = ask(critic, [question(text, one, ImageOpinion) for (text, _), one in zip(asked, drawn, strict=True)])
        pairs = [(ImageOpinion.model_validate_json(a), ImageOpinion.model_validate_json(b)) for a, (_, b) in zip(said, asked, strict=True)]
        right = sum(a.is_valid == b.is_valid for a, b in pairs)
        assert right >= 0.75 * len(drawn), f"{right} of {len(drawn)}"


def other(scene: Scene, dice: Random) -> Scene:
    while (drawn := any_scene(dice)) == scene:
        continue
    return drawn


def test_it_says_the_same_alone_as_beside_others(critic: VlmEngine) -> None:
    asked = [question(JUDGE_TEXT, one, AdOpinion) for one in posters(73, 8)]
    assert [text for one in asked for text in ask(critic, [one])] == ask(critic, asked)
