"""Questions about a poster, in the prompts of the judge and validate steps, and the answers that tiny-critic should give."""

import json
from dataclasses import dataclass, replace
from random import Random

from pydantic import BaseModel

from actors.engines.language.requests import VlmOptions
from actors.vision.prompts import JUDGE_PROMPT, build_validate_prompt
from training.posters import Poster
from training.scenes import COLOURS, SHAPES, Scene, random_scene
from training.slogans import slogans

PROMPT_TEMPLATE = VlmOptions("").prompt_template
"""The engine's prompt with an image and a text."""

WordClaims = tuple[tuple[str, bool], ...]
"""Words of a text about an image, and whether each is true of it."""


@dataclass(frozen=True)
class CriticExample:
    """`claims` is empty where the question contains no text about the image."""

    question: str
    answer: str
    claims: WordClaims = ()


def judge_example(poster: Poster) -> CriticExample:
    return CriticExample(JUDGE_PROMPT, to_json(poster.expected_verdict))


def validate_example(poster: Poster, target_scene: Scene, rng: Random) -> CriticExample:
    """The validate step's question, with a text about `target_scene`."""
    copy, claims = ad_copy_for(poster, target_scene, rng)
    return CriticExample(build_validate_prompt(copy), to_json(poster.expected_validation(target_scene)), claims)


def naming_example(poster: Poster, rng: Random) -> CriticExample:
    """What the poster shows. No step asks this: naming it helps to find it in a text."""
    korean = rng.random() < 0.5
    scene = poster.scene
    name = scene.captions[4 if korean else 0] if scene else COLOURS[poster.ground][0] if korean else poster.ground
    return CriticExample("무엇이 보입니까?" if korean else "What is shown?", name)


def ad_copy_for(poster: Poster, target_scene: Scene, rng: Random) -> tuple[str, WordClaims]:
    """An advertising text about a scene, and which of its words are true of the poster."""
    korean = rng.random() < 0.5
    captions = target_scene.captions[4:] if korean else target_scene.captions[:4]
    copy = rng.choice(slogans(target_scene, korean=korean) if rng.random() < 0.7 else captions)
    scene = poster.scene
    shape, colour = (scene.shape, scene.colour) if scene else (None, None)
    true = (shape == target_scene.shape, colour == target_scene.colour, poster.ground == target_scene.ground)
    return copy, tuple(zip(target_scene.shape_and_color_words(korean=korean), true, strict=True))


def random_target_scene(poster: Poster, rng: Random) -> Scene:
    """The scene of the text: half the time the poster's; else another one, half of these with one attribute changed."""
    if poster.scene and rng.random() < 0.5:
        return poster.scene
    return vary_scene(poster.scene, rng) if poster.scene and rng.random() < 0.5 else random_scene(rng)


def vary_scene(scene: Scene, rng: Random) -> Scene:
    """The same scene with one attribute changed."""
    part, names = rng.choice((("shape", SHAPES), ("colour", COLOURS), ("ground", COLOURS)))
    unused = [name for name in names if name not in (scene.shape, scene.colour, scene.ground)]
    return replace(scene, **{part: rng.choice(unused)})


def to_json(verdict: BaseModel) -> str:
    """JSON as the engine's grammar writes it."""
    return json.dumps(verdict.model_dump(mode="json"), ensure_ascii=False)
