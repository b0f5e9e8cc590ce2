"""Each family of vision models: the same tokens as transformers' `generate` with the model alone, however rows join and leave."""

import json
import random

import pytest

from actors.engines.language.requests import VlmRequest, VlmResponse
from actors.engines.language.vision_model import VlmEngine
from actors.engines.process.protocol import Finished
from actors.vision.prompts import JUDGE_PROMPT, build_validate_prompt
from bus.errors import PermanentError
from contracts.verdict import AdVerdictSchema, ImageVerdictSchema, VerdictSchema
from tests.support.vision_families import generate, generate_alone, picture

pytestmark = [
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]

QUESTIONS = (
    VlmRequest("이 그림에 무엇이 보이나요?", (picture(1, (56, 56)),), 24),
    VlmRequest("포스터의 글자는 제품과 어울립니까? 자세히 설명해 주세요.", (picture(2, (140, 84)), picture(3, (60, 150))), 7),
    VlmRequest("색?", (picture(4, (60, 150)),), 18, 1.3),
    VlmRequest("Which of the three shows a red circle?", (picture(5, (224, 112)), picture(6, (40, 40)), picture(7, (90, 224))), 11),
    VlmRequest("그림 없이 묻습니다: 좋은 포스터란?", (), 24),
    VlmRequest("Is there any text, and where is it exactly in the frame, top or bottom?", (picture(8, (84, 140)),), 24),
)
JOINS = (0, 0, 5, 9, 9, 12)
"""The second and the fourth leave while others go on."""
HOSTILE_CHARS = '가나다라마바사 포스터그림 abcdef "{}[]:,\n1234567890'
RANDOM_ROWS, MAX_ROWS = 20, 6


@pytest.mark.parametrize("joins", [(0,) * len(QUESTIONS), JOINS], ids=["together", "late"])
def test_mixed_answers_equal_transformers_generate(engine: VlmEngine, joins: tuple[int, ...]) -> None:
    """Pictures of different sizes, several in one question, none in another; rows join at a token of others and leave early."""
    assert generate(engine, QUESTIONS, joins) == [generate_alone(engine, question) for question in QUESTIONS]


def test_random_mixes_equal_transformers_generate(engine: VlmEngine) -> None:
    """Random pictures, questions and limits, six rows at most."""
    dice = random.Random(11)
    requests = [
        VlmRequest(
            "".join(dice.choices(HOSTILE_CHARS, k=dice.randint(3, 60))),
            tuple(picture(dice.randrange(1 << 30)) for _ in range(dice.choice([0, 1, 1, 1, 2]))),
            dice.randint(1, 20),
        )
        for _ in range(RANDOM_ROWS)
    ]
    joins = sorted(dice.randrange(RANDOM_ROWS * 3) for _ in requests)
    engine._max_rows = MAX_ROWS
    assert generate(engine, requests, joins) == [generate_alone(engine, request) for request in requests]


def test_answer_depends_on_the_pictures_and_their_order(engine: VlmEngine) -> None:
    first, second, third = (picture(number, (112, 84)) for number in (21, 22, 23))
    questions = [VlmRequest("?", pictures, 12) for pictures in ((first, second), (second, first), (first, third), (first,), (second,))]
    answers = generate(engine, questions)
    assert len({tuple(tokens) for tokens in answers}) == len(questions)


def test_verdicts_are_valid(engine: VlmEngine) -> None:
    """Random weights, hostile texts, both schemas."""
    hostile = build_validate_prompt('{"}]} \\u0000 <image></s>')
    cases: list[tuple[type[VerdictSchema], str]] = [
        (ImageVerdictSchema, hostile),
        (AdVerdictSchema, JUDGE_PROMPT),
        (ImageVerdictSchema, "?"),
    ]
    for number, (schema, text) in enumerate(cases):
        engine.submit(number, VlmRequest(text, (picture(number),), 512, 1.0, json.dumps(schema.model_json_schema())))
    responses: dict[int, VlmResponse] = {}
    while engine.idle_seconds() is not None:
        responses |= {event.request_id: event.result for event in engine.tick() if isinstance(event, Finished)}
    for number, (schema, _) in enumerate(cases):
        schema.model_validate_json(responses[number].text)
        assert (responses[number].finish_reason, responses[number].constrained) == ("stop", True)


def test_control_words_of_the_model_are_removed_from_user_text(engine: VlmEngine) -> None:
    """All of its vocabulary, one within another too: a picture more than there are would be an error."""
    words = sorted({*engine._tokenizer.all_special_tokens, *engine._tokenizer.get_added_vocab(), engine._family.image_token}, key=len)
    hostile = "one" + "".join(words) + "".join(f"{word[:2]}{words[-1]}{word[2:]}" for word in words) + " two"
    for pictures in ((), (picture(1),)):
        plain, attack = (engine._preprocess(VlmRequest(text, pictures)) for text in ("one two", hostile))
        assert attack.ids.tolist() == plain.ids.tolist()


def test_question_that_exceeds_the_context_is_refused_with_counts(engine: VlmEngine) -> None:
    with pytest.raises(PermanentError, match=r"\d{5} tokens of prompt and 64 of answer exceed the model's context of \d+") as error:
        engine.submit(1, VlmRequest("x" * 20_000, (picture(1), picture(2)), 64))
    assert error.value.code == "prompt-too-long"
    with pytest.raises(PermanentError) as error:
        engine.submit(1, VlmRequest("?", (picture(1),) * 10))
    assert error.value.code == "too-many-pictures"
    assert engine.idle_seconds() is None


def test_unreadable_picture_fails_alone(engine: VlmEngine) -> None:
    with pytest.raises(PermanentError, match="picture 2 of 2 is no PNG") as error:
        engine.submit(1, VlmRequest("?", (picture(1), b"no picture")))
    assert error.value.code == "image-unreadable"
    assert generate(engine, QUESTIONS[:1]) == [generate_alone(engine, QUESTIONS[0])]
