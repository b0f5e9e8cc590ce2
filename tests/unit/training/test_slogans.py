"""Slogans: each names its scene, in its language, and fits the token limit of an order."""

from random import Random

import pytest

from gateway.jobs.orders import ad_copy_command
from training import tiny_writer
from training.scenes import COLOURS, SHAPES, Scene, all_scenes
from training.slogans import CALLS_TO_ACTION, ENGLISH_TEMPLATES, ends_in_consonant, slogans

STAR = Scene("star", "orange", "black")


def test_slogan_names_shape_and_both_colours() -> None:
    assert "Meet an orange star on black. Order today." in slogans(STAR, korean=False)
    assert "검은 바탕에 주황 별, 지금 만나 보세요." in slogans(STAR, korean=True)
    assert len(set(slogans(STAR, korean=False))) == len(ENGLISH_TEMPLATES) * len(CALLS_TO_ACTION)
    for line in slogans(STAR, korean=False):
        assert {"orange", "star", "black"} <= set(line.replace(",", " ").replace(".", " ").split())


@pytest.mark.parametrize(("word", "particle"), [("별", "을"), ("하트", "를"), ("정사각형", "을"), ("고리", "를")])
def test_korean_particle_follows_last_syllable(word: str, particle: str) -> None:
    assert ends_in_consonant(word) is (particle == "을")
    shape = next(english for english, korean in SHAPES.items() if korean == word)
    assert any(f"{word}{particle} 담아" in line for line in slogans(Scene(shape, "red", "blue"), korean=True))


def test_slogans_are_unique_per_scene() -> None:
    """Otherwise a critic could not tell which scene is meant."""
    for korean in (False, True):
        lines = [line for scene in all_scenes() for line in slogans(scene, korean=korean)]
        assert len(lines) == len(set(lines))


def test_example_is_in_one_language_and_partly_in_order_prompt() -> None:
    rng = Random(1)
    in_prompt = 0
    for _ in range(60):
        messages, line = tiny_writer.sample_example(rng)
        korean = is_korean(messages[-1]["content"])
        assert is_korean(line) is korean
        in_prompt += messages == ad_copy_command(messages[-1]["content"])["messages"]
    assert 20 < in_prompt < 60


def is_korean(text: str) -> bool:
    return any("가" <= character <= "힣" for character in text)


def test_slogan_fits_token_limit() -> None:
    """So that an order's limit never cuts one off."""
    tokenizer = tiny_writer.build_tokenizer()
    limit = ad_copy_command("")["max_tokens"]
    for scene in all_scenes()[::91]:
        for line in (*slogans(scene, korean=False), *slogans(scene, korean=True)):
            assert len(tokenizer(line).input_ids) < limit / 2
            assert tokenizer.decode(tokenizer(line).input_ids) == line
    assert set(COLOURS) >= {scene.ground for scene in all_scenes()}
