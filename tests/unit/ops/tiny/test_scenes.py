"""What the tiny painter is asked for, and the words it reads."""

from random import Random

from ops.tiny.codes import BITS, codes, palette
from ops.tiny.scenes import COLOURS, SHAPES, Scene, all_scenes, any_scene
from ops.tiny.words import build_tokenizer


def test_a_scene_is_said_in_both_languages() -> None:
    assert Scene("circle", "red", "orange").captions[0] == "a red circle on an orange background"
    assert "파란 배경에 빨간 원" in Scene("circle", "red", "blue").captions


def test_every_scene_has_two_colours() -> None:
    assert len(all_scenes()) == len(SHAPES) * len(COLOURS) * (len(COLOURS) - 1)
    dice = Random(1)
    assert all(scene.colour != scene.ground for scene in (any_scene(dice) for _ in range(200)))


def test_each_colour_is_a_word_of_bits_of_its_own() -> None:
    assert len(set(BITS)) == len(COLOURS)
    assert codes().shape == (len(COLOURS), 4)
    assert codes().abs().eq(1).all()
    assert palette().shape == (len(COLOURS), 3)


def test_a_word_of_a_caption_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for scene in all_scenes()[::37]:
        for caption in scene.captions:
            words = caption.replace(",", " ,").split()
            assert len(tokenizer(caption).input_ids) == len(words) + 2, caption


def test_any_text_can_be_read() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer("zebra 🦓 얼룩말").input_ids, skip_special_tokens=True).strip() == "zebra 🦓 얼룩말"
