"""The scenes and the tokenizer of tiny-shapes."""

from random import Random

from training.clip_tokenizer import build_clip_tokenizer
from training.latent_codes import CODE_BITS, color_codes, color_palette
from training.scenes import COLOURS, SHAPES, Scene, all_scenes, random_scene


def test_scene_has_captions_in_both_languages() -> None:
    assert Scene("circle", "red", "orange").captions[0] == "a red circle on an orange background"
    assert "파란 배경에 빨간 원" in Scene("circle", "red", "blue").captions


def test_every_scene_has_two_colours() -> None:
    assert len(all_scenes()) == len(SHAPES) * len(COLOURS) * (len(COLOURS) - 1)
    rng = Random(1)
    assert all(scene.colour != scene.ground for scene in (random_scene(rng) for _ in range(200)))


def test_color_codes_are_unique() -> None:
    assert len(set(CODE_BITS)) == len(COLOURS)
    assert color_codes().shape == (len(COLOURS), 4)
    assert color_codes().abs().eq(1).all()
    assert color_palette().shape == (len(COLOURS), 3)


def test_caption_word_is_one_token() -> None:
    tokenizer = build_clip_tokenizer()
    for scene in all_scenes()[::37]:
        for caption in scene.captions:
            words = caption.replace(",", " ,").split()
            assert len(tokenizer(caption).input_ids) == len(words) + 2, caption


def test_any_text_is_tokenized() -> None:
    tokenizer = build_clip_tokenizer()
    assert tokenizer.decode(tokenizer("zebra 🦓 얼룩말").input_ids, skip_special_tokens=True).strip() == "zebra 🦓 얼룩말"
