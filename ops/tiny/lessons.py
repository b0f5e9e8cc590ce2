"""What the critic is asked about a poster, in the very words of the judge and validate steps, and what it should answer."""

import json
from dataclasses import dataclass, replace
from random import Random

from pydantic import BaseModel

from actors.engines.vlm import VlmOptions
from actors.seeing.prompts import JUDGE_TEXT, validate_text
from ops.tiny.posters import Poster
from ops.tiny.scenes import COLOURS, SHAPES, Scene, any_scene
from ops.tiny.slogans import slogans

FRAME = VlmOptions("").frame
"""How the engine puts an image and a text to the model."""

Claims = tuple[tuple[str, bool], ...]
"""Words of a text about a picture, and whether each is true of it."""


@dataclass(frozen=True)
class Lesson:
    """`claims`: none where the question is about no text."""

    question: str
    answer: str
    claims: Claims = ()


def judging(poster: Poster) -> Lesson:
    return Lesson(JUDGE_TEXT, as_said(poster.opinion))


def suiting(poster: Poster, meant: Scene, dice: Random) -> Lesson:
    """The validate step's question, with a text about the scene `meant`."""
    copy, claims = promise(poster, meant, dice)
    return Lesson(validate_text(copy), as_said(poster.suits(meant)), claims)


def naming(poster: Poster, dice: Random) -> Lesson:
    """No step asks it; whoever can name what is shown finds it in a text."""
    korean = dice.random() < 0.5
    scene = poster.scene
    name = scene.captions[4 if korean else 0] if scene else COLOURS[poster.ground][0] if korean else poster.ground
    return Lesson("무엇이 보입니까?" if korean else "What is shown?", name)


def promise(poster: Poster, meant: Scene, dice: Random) -> tuple[str, Claims]:
    """An advertisement's text about a scene, and which of its words are true of the poster."""
    korean = dice.random() < 0.5
    captions = meant.captions[4:] if korean else meant.captions[:4]
    copy = dice.choice(slogans(meant, korean=korean) if dice.random() < 0.7 else captions)
    scene = poster.scene
    shown = (scene.shape, scene.colour) if scene else (None, None)
    true = (shown[0] == meant.shape, shown[1] == meant.colour, poster.ground == meant.ground)
    return copy, tuple(zip(meant.words(korean=korean), true, strict=True))


def any_meant(poster: Poster, dice: Random) -> Scene:
    """What a text is about: half the time what the poster shows; else another scene, half of these nearly the same."""
    if poster.scene and dice.random() < 0.5:
        return poster.scene
    return nearly(poster.scene, dice) if poster.scene and dice.random() < 0.5 else any_scene(dice)


def nearly(scene: Scene, dice: Random) -> Scene:
    """The same but for one thing."""
    part, names = dice.choice((("shape", SHAPES), ("colour", COLOURS), ("ground", COLOURS)))
    left = [name for name in names if name not in (scene.shape, scene.colour, scene.ground)]
    return replace(scene, **{part: dice.choice(left)})


def as_said(opinion: BaseModel) -> str:
    """As the grammar of the engine writes JSON."""
    return json.dumps(opinion.model_dump(mode="json"), ensure_ascii=False)
