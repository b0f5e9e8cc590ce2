"""No answer can be longer than its schema says, and a schema without an end is refused."""

import json

import pytest
from pydantic import BaseModel

from actors.seeing.bounds import longest_bytes
from contracts.verdict import AdOpinion, ImageOpinion

LETTER = "🥐"


def test_the_longest_verdict_is_no_longer_than_told() -> None:
    longest = {
        "is_valid": False,
        "image_quality_ok": False,
        "relevance_score": 0.123456,
        "analysis": LETTER * 240,
        "issues": [LETTER * 100] * 4,
        "recommendations": [LETTER * 100] * 4,
        "font_recommendation": {
            "font_style": "sans-serif",
            "font_name": LETTER * 40,
            "font_size_category": "medium",
            "font_color_hex": "ffffff",
            "reasoning": LETTER * 160,
        },
    }
    ImageOpinion.model_validate(longest)
    size = len(json.dumps(longest, ensure_ascii=False).encode())

    assert size <= longest_bytes(ImageOpinion) <= size + 60
    assert longest_bytes(AdOpinion) < longest_bytes(ImageOpinion)


class Endless(BaseModel):
    words: list[bool]


class Talkative(BaseModel):
    words: str


@pytest.mark.parametrize("model", [Endless, Talkative])
def test_a_schema_without_an_end_is_refused(model: type[BaseModel]) -> None:
    with pytest.raises(ValueError, match="might never end"):
        longest_bytes(model)
