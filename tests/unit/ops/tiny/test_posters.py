"""The critic's lessons: what a poster says of itself is so."""

from random import Random

import numpy as np

from contracts.verdict import AdOpinion, ImageOpinion
from ops.tiny import critic
from ops.tiny.posters import CLASSES, draw_poster, numbers


def test_the_same_dice_draw_the_same_posters() -> None:
    one, other = (draw_poster(Random(4)) for _ in range(2))
    assert np.array_equal(np.asarray(one.pixels), np.asarray(other.pixels))
    assert one.opinion == other.opinion


def test_every_answer_comes_both_ways() -> None:
    dice = Random(2)
    posters = [draw_poster(dice) for _ in range(120)]
    for name in ("on_brief", "occlusion", "contrast_ok", "cta_present"):
        yes = sum(getattr(poster.opinion, name) for poster in posters)
        assert 12 < yes < 118, name
    assert all(0 <= number < classes for poster in posters for number, classes in zip(numbers(poster), CLASSES, strict=True))


def test_an_answer_is_a_verdict() -> None:
    dice = Random(3)
    for _ in range(20):
        (_, judged), (_, looked) = critic.lessons_on(draw_poster(dice), dice)
        AdOpinion.model_validate_json(judged)
        ImageOpinion.model_validate_json(looked)


def test_the_lessons_are_the_prompts_of_the_engine() -> None:
    """Token by token: the processor puts as many patches as the lessons do."""
    _, processor = critic.build_critic()
    poster = draw_poster(Random(6))
    question, _ = critic.lessons_on(poster, Random(6))[1]
    text = critic.FRAME.format(image=f"{processor.image_token}\n", text=question)
    read = processor(images=[poster.pixels], text=[text], return_tensors="pt")["input_ids"][0].tolist()
    patches = processor.image_token * (critic.SIDE // critic.PATCH) ** 2
    assert read == processor.tokenizer(critic.FRAME.format(image=f"{patches}\n", text=question)).input_ids
