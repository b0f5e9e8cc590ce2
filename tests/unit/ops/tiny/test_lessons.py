"""The critic's lessons: in the prompts of the engine, answered as its grammar would, each claim of a text as the poster has it."""

from random import Random

from contracts.verdict import AdOpinion, ImageOpinion
from ops.tiny import critic
from ops.tiny.grounding import framed, place, promising
from ops.tiny.lessons import FRAME, any_meant, judging, naming, nearly, suiting
from ops.tiny.posters import draw_poster
from ops.tiny.scenes import any_scene


def test_what_a_poster_shows_is_named_in_the_language_of_the_question() -> None:
    dice = Random(10)
    for poster in [draw_poster(dice) for _ in range(30)]:
        lesson = naming(poster, dice)
        assert any("가" <= letter <= "힣" for letter in lesson.question) is any("가" <= letter <= "힣" for letter in lesson.answer)
        assert poster.scene is None or lesson.answer in poster.scene.captions


def test_an_answer_is_a_verdict() -> None:
    dice = Random(3)
    for _ in range(20):
        poster = draw_poster(dice)
        AdOpinion.model_validate_json(judging(poster).answer)
        ImageOpinion.model_validate_json(suiting(poster, any_scene(dice), dice).answer)


def test_a_text_fits_when_all_its_words_are_true() -> None:
    dice = Random(12)
    for poster in [draw_poster(dice) for _ in range(60)]:
        lesson = suiting(poster, any_meant(poster, dice), dice)
        fits = ImageOpinion.model_validate_json(lesson.answer).relevance_score > 0.5
        assert all(true for _, true in lesson.claims) is fits, lesson
        assert all(word in lesson.question for word, _ in lesson.claims)


def test_nearly_the_same_differs_in_one_thing() -> None:
    dice = Random(13)
    for scene in [any_scene(dice) for _ in range(50)]:
        other = nearly(scene, dice)
        assert [one == another for one, another in zip(vars(scene).values(), vars(other).values(), strict=True)].count(False) == 1
        assert other.colour != other.ground


def test_the_lessons_are_the_prompts_of_the_engine() -> None:
    """Token by token: the processor puts as many patches as the lessons do."""
    _, processor = critic.build_critic()
    poster = draw_poster(Random(6))
    question = suiting(poster, any_scene(Random(6)), Random(6)).question
    text = FRAME.format(image=f"{processor.image_token}\n", text=question)
    read = processor(images=[poster.pixels], text=[text], return_tensors="pt")["input_ids"][0].tolist()
    patches = processor.image_token * (critic.SIDE // critic.PATCH) ** 2
    assert read == processor.tokenizer(FRAME.format(image=f"{patches}\n", text=question)).input_ids


def test_a_word_is_found_where_it_stands() -> None:
    tokenizer, dice = critic.build_tokenizer(), Random(14)
    for _ in range(60):
        lesson = promising(draw_poster(dice), dice)
        prompt = framed(lesson)
        ids = tokenizer(prompt).input_ids
        for word, _ in lesson.claims:
            at = place(tokenizer, prompt, word)
            assert word.endswith(tokenizer.decode(ids[at]).strip())
            assert word in tokenizer.decode(ids[at - 5 : at + 1]), (word, prompt)
