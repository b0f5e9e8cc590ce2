"""The training examples of tiny-critic: the engine's prompts, answers that its grammar allows, and claims that match the poster."""

import json
from random import Random

from contracts.verdict import AdVerdictSchema, ImageVerdictSchema
from training import tiny_critic
from training.critic_examples import PROMPT_TEMPLATE, judge_example, naming_example, random_target_scene, validate_example, vary_scene
from training.grounding import format_prompt, relevance_example, word_position
from training.posters import draw_poster
from training.scenes import random_scene


def test_naming_example_answers_in_language_of_question() -> None:
    rng = Random(10)
    for poster in [draw_poster(rng) for _ in range(30)]:
        example = naming_example(poster, rng)
        assert is_korean(example.question) is is_korean(example.answer)
        assert poster.scene is None or example.answer in poster.scene.captions


def is_korean(text: str) -> bool:
    return any("가" <= character <= "힣" for character in text)


def test_every_example_answer_is_valid_verdict() -> None:
    rng = Random(3)
    for _ in range(20):
        poster = draw_poster(rng)
        for schema, answer in (
            (AdVerdictSchema, judge_example(poster).answer),
            (ImageVerdictSchema, validate_example(poster, random_scene(rng), rng).answer),
        ):
            assert schema.model_validate_json(answer).model_dump(mode="json", by_alias=True) == json.loads(answer)


def test_claims_are_all_true_only_for_matching_text() -> None:
    rng = Random(12)
    for poster in [draw_poster(rng) for _ in range(60)]:
        example = validate_example(poster, random_target_scene(poster, rng), rng)
        matches = ImageVerdictSchema.model_validate_json(example.answer).relevance_score > 0.5
        assert all(true for _, true in example.claims) is matches, example
        assert all(word in example.question for word, _ in example.claims)


def test_varied_scene_differs_in_one_attribute() -> None:
    rng = Random(13)
    for scene in [random_scene(rng) for _ in range(50)]:
        other = vary_scene(scene, rng)
        assert [one == another for one, another in zip(vars(scene).values(), vars(other).values(), strict=True)].count(False) == 1
        assert other.colour != other.ground


def test_examples_use_engine_prompts() -> None:
    """Token by token: the processor inserts as many image tokens as the examples have."""
    _, processor = tiny_critic.build_critic()
    poster = draw_poster(Random(6))
    question = validate_example(poster, random_scene(Random(6)), Random(6)).question
    text = PROMPT_TEMPLATE.format(image=f"{processor.image_token}\n", text=question)
    input_ids = processor(images=[poster.pixels], text=[text], return_tensors="pt")["input_ids"][0].tolist()
    patches = processor.image_token * (tiny_critic.IMAGE_SIZE // tiny_critic.PATCH_SIZE) ** 2
    assert input_ids == processor.tokenizer(PROMPT_TEMPLATE.format(image=f"{patches}\n", text=question)).input_ids


def test_word_position_is_last_token_of_word() -> None:
    tokenizer, rng = tiny_critic.build_tokenizer(), Random(14)
    for _ in range(60):
        example = relevance_example(draw_poster(rng), rng)
        prompt = format_prompt(example)
        ids = tokenizer(prompt).input_ids
        for word, _ in example.claims:
            position = word_position(tokenizer, prompt, word)
            assert word.endswith(tokenizer.decode(ids[position]).strip())
            assert word in tokenizer.decode(ids[position - 5 : position + 1]), (word, prompt)
