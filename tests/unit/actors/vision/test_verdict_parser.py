"""Parsed answers: consultations without repetition; verdicts that match their schema or are repaired in form, never invented."""

import json

import pytest

from actors.engines.language.requests import VlmResponse
from actors.vision.verdict_parser import parse_verdict, trim_repetition
from bus.errors import TemporaryError
from contracts.verdict import AdVerdictSchema, ImageAnswer, ImageVerdictSchema

AD = {"on_brief": True, "occlusion": False, "contrast_ok": True, "cta_present": False, "analysis": "clear", "issues": ["small text"]}
IMAGE = {
    "is_valid": False,
    "image_quality_ok": True,
    "relevance_score": 0.35,
    "analysis": "그림이 글과 다르다",
    "issues": [],
    "recommendations": ["더 밝게"],
    "font_recommendation": {
        "font_style": "bold",
        "font_name": "Noto Sans",
        "font_size_category": "large",
        "font_color_hex": "ffffff",
        "reasoning": "dark background",
    },
}


def make_response(text: str, finish: str = "stop", constrained: bool = False) -> VlmResponse:
    return VlmResponse(text, finish, "m", constrained=constrained)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("one", "one"),
        ("물\x00을\x1b 드세요\n네\t", "물을 드세요\n네"),
        ("Chain-of-Thought: a\n\nAnswer: b\n\nAnswer: b", "Chain-of-Thought: a\n\nAnswer: b\n\nAnswer: b"),
        ("Chain-of-Thought: 건조합니다.\n\n건조합니다.", "Chain-of-Thought: 건조합니다."),
        ("Chain-of-Thought: 건조한\n\n피부입니다.\n\n피부입니다.", "Chain-of-Thought: 건조한\n\n피부입니다."),
        ("a\n\nAnswer: b\n\nmore", "a\n\nAnswer: b"),
    ],
)
def test_consult_answer_is_cut_at_repetition(text: str, kept: str) -> None:
    assert trim_repetition(text) == kept


def test_valid_json_verdict_is_accepted() -> None:
    assert parse_verdict(make_response(json.dumps(AD)), AdVerdictSchema) == (AdVerdictSchema.model_validate(AD), False)


@pytest.mark.parametrize(
    "text",
    [
        "Here you are:\n```json\n" + json.dumps(AD) + "\n```",
        json.dumps(AD | {"confidence": 0.9}),
        json.dumps(AD)[:-1] + ",}",
        json.dumps(AD).replace("clear", r"clear\_now"),
        json.dumps(AD | {"on_brief": "yes", "issues": "small text"}),
        'An example is {"on_brief": true}. My answer: ' + json.dumps(AD),
    ],
)
def test_malformed_verdict_is_repaired_and_marked(text: str) -> None:
    verdict, repaired = parse_verdict(make_response(text), AdVerdictSchema)

    assert repaired
    assert (verdict.on_brief, verdict.issues) == (True, ["small text"])


AD_LINES = """Here is my verdict.
On Brief: Yes
**Occlusion:** No, nothing is covered.
contrast_ok = true
- CTA Present: no
Analysis: clear
and to the point
Issues:
1. small text
2. dull; pale
"""
IMAGE_LINES = """Overall Assessment: Not Suitable
image_quality_ok: yes
Match Score: 3.5/10
Analysis: 그림이 글과 다르다
Issues: None
Recommendations: 더 밝게
Font recommendation:
- font_style: Bold
- font_name: Noto Sans
- font_size_category: large
- font_color_hex: #FFFFFF
- reasoning: dark background
"""


def test_labelled_lines_are_parsed_as_verdict() -> None:
    """The form of servers without constrained decoding, and of the source system's models."""
    ad, ad_repaired = parse_verdict(make_response(AD_LINES), AdVerdictSchema)
    image, image_repaired = parse_verdict(make_response(IMAGE_LINES), ImageVerdictSchema)

    assert ad_repaired
    assert image_repaired
    assert ad.model_dump() == AD | {"analysis": "clear and to the point", "issues": ["small text", "dull", "pale"]}
    assert image.model_dump() == IMAGE


FONTS = [
    ({"style": "serif", "size": "large", "color": "light"}, ("serif", "large", "ffffff")),
    ({"style": "Sans-Serif", "size": "Small", "color": "dark"}, ("sans-serif", "small", "000000")),
    ({"style": "bold", "size": "medium", "color": "#AA00FF"}, ("bold", "medium", "aa00ff")),
]


@pytest.mark.parametrize(("font", "expected"), FONTS)
def test_font_of_the_source_systems_prompt_is_accepted(font: dict[str, str], expected: tuple[str, ...]) -> None:
    """Style, size and colour without a name and a reason, which are not invented."""
    answer = "Sure: " + json.dumps(IMAGE | {"font_recommendation": font}, ensure_ascii=False)
    verdict, repaired = parse_verdict(make_response(answer), ImageAnswer, ImageVerdictSchema)

    read = verdict.font_recommendation
    assert repaired
    assert read is not None
    assert (read.font_style, read.font_size_category, read.font_color_hex, read.font_name, read.reasoning) == (*expected, "", "")


def test_answer_without_a_font_is_accepted_as_the_prompt_without_a_text_asks_for_none() -> None:
    answer = json.dumps({name: value for name, value in IMAGE.items() if name != "font_recommendation"})
    verdict, repaired = parse_verdict(make_response(answer), ImageAnswer, ImageVerdictSchema)
    assert (verdict.font_recommendation, repaired, verdict.relevance_score) == (None, True, 0.35)


def test_unknown_font_is_no_verdict() -> None:
    for font in ({"style": "round", "size": "large", "color": "light"}, {"style": "serif", "size": "large"}, "large"):
        with pytest.raises(TemporaryError):
            parse_verdict(make_response(json.dumps(IMAGE | {"font_recommendation": font})), ImageAnswer, ImageVerdictSchema)


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("On Brief: Yes", ""),
        ("On Brief: Yes", "On Brief: Yes and no"),
        ("On Brief: Yes", "On Brief: perhaps"),
        ("On Brief: Yes", "On Brief: Yes\nOn Brief: No"),
        ("Issues:", "Remarks:"),
        ("Analysis: clear", ""),
    ],
)
def test_labelled_lines_with_missing_field_are_rejected(line: str, other: str) -> None:
    assert line in AD_LINES
    with pytest.raises(TemporaryError) as raised:
        parse_verdict(make_response(AD_LINES.replace(line, other)), AdVerdictSchema)

    assert raised.value.code == "verdict-unreadable"


def test_score_without_scale_is_rejected() -> None:
    for score in ("8", "7 of 10", "high"):
        with pytest.raises(TemporaryError):
            parse_verdict(make_response(IMAGE_LINES.replace("3.5/10", score)), ImageVerdictSchema)
    verdict, _ = parse_verdict(make_response(IMAGE_LINES.replace("3.5/10", "80%")), ImageVerdictSchema)
    assert verdict.relevance_score == 0.8


def test_long_texts_and_lists_are_shortened_to_their_limits() -> None:
    too_long = IMAGE | {"analysis": "a" * 999, "issues": ['say "x"\n'] * 9}
    too_long["font_recommendation"] = IMAGE["font_recommendation"] | {"font_color_hex": "#FFFFFF"}  # type: ignore[operator]

    verdict, repaired = parse_verdict(make_response(json.dumps(too_long)), ImageVerdictSchema)

    assert repaired
    assert (len(verdict.analysis), verdict.issues) == (240, ["say 'x'"] * 4)


@pytest.mark.parametrize(
    "text",
    ["", "I cannot say.", '{"on_brief": true}', "{'on_brief': True}", "[]", json.dumps({**AD, "occlusion": "maybe"}), "{" * 5000],
)
def test_unparsable_text_is_never_a_verdict(text: str) -> None:
    """Not even a negative one."""
    with pytest.raises(TemporaryError) as raised:
        parse_verdict(make_response(text), AdVerdictSchema)

    assert raised.value.code == "verdict-unreadable"


def test_truncated_verdict_error_names_truncation() -> None:
    with pytest.raises(TemporaryError) as raised:
        parse_verdict(make_response(json.dumps(AD)[:40], "length"), AdVerdictSchema)

    assert raised.value.code == "verdict-unfinished"
