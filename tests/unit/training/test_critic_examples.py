"""The critic's lessons: in the prompts of the engine, answered as its grammar would, each claim of a text as the poster has it."""

from random import Random

from contracts.verdict import AdVerdictSchema, ImageVerdictSchema
from training import tiny_critic
from training.critic_examples import PROMPT_TEMPLATE, judge_example, naming_example, random_target_scene, validate_example, vary_scene
from training.grounding import format_prompt, relevance_example, word_position
from training.posters import draw_poster
from training.scenes import random_scene


def test_what_a_poster_shows_is_named_in_the_language_of_the_question() -> None:
    dice = Random(10)
    for poster in [draw_poster(dice) for _ in range(30)]:
        lesson = naming_example(poster, dice)
        assert any("가" <= letter <= "힣" for letter in lesson.question) is any("가" <= letter <= "힣" for letter in lesson.answer)
        assert poster.scene is None or lesson.answer in poster.scene.captions


def test_every_example_answer_is_valid_verdict() -> None:
    dice = Random(3)
    for _ in range(20):
        poster = draw_poster(dice)
        AdVerdictSchema.model_validate_json(judge_example(poster).answer)
        ImageVerdictSchema.model_validate_json(validate_example(poster, random_scene(dice), dice).answer)


def test_claims_are_all_true_only_for_matching_text() -> None:
    dice = Random(12)
    for poster in [draw_poster(dice) for _ in range(60)]:
        lesson = validate_example(poster, random_target_scene(poster, dice), dice)
        fits = ImageVerdictSchema.model_validate_json(lesson.answer).relevance_score > 0.5
        assert all(true for _, true in lesson.claims) is fits, lesson
        assert all(word in lesson.question for word, _ in lesson.claims)


def test_varied_scene_differs_in_one_attribute() -> None:
    dice = Random(13)
    for scene in [random_scene(dice) for _ in range(50)]:
        other = vary_scene(scene, dice)
        assert [one == another for one, another in zip(vars(scene).values(), vars(other).values(), strict=True)].count(False) == 1
        assert other.colour != other.ground


def test_examples_use_engine_prompts() -> None:
    """Token by token: the processor puts as many patches as the lessons do."""
    _, processor = tiny_critic.build_critic()
    poster = draw_poster(Random(6))
    question = validate_example(poster, random_scene(Random(6)), Random(6)).question
    text = PROMPT_TEMPLATE.format(image=f"{processor.image_token}\n", text=question)
    read = processor(images=[poster.pixels], text=[text], return_tensors="pt")["input_ids"][0].tolist()
    patches = processor.image_token * (tiny_critic.IMAGE_SIZE // tiny_critic.PATCH_SIZE) ** 2
    assert read == processor.tokenizer(PROMPT_TEMPLATE.format(image=f"{patches}\n", text=question)).input_ids


def test_word_position_is_last_token_of_word() -> None:
    tokenizer, dice = tiny_critic.build_tokenizer(), Random(14)
    for _ in range(60):
        lesson = relevance_example(draw_poster(dice), dice)
        prompt = format_prompt(lesson)
        ids = tokenizer(prompt).input_ids
        for word, _ in lesson.claims:
            at = word_position(tokenizer, prompt, word)
            assert word.endswith(tokenizer.decode(ids[at]).strip())
            assert word in tokenizer.decode(ids[at - 5 : at + 1]), (word, prompt)
