"""No answer can be longer than its schema says, and a schema without an end is refused."""

import json

import pytest
from pydantic import BaseModel

from actors.vision.schema_limits import max_json_bytes
from contracts.verdict import AdVerdictSchema, ImageVerdictSchema

LETTER = "🥐"


def test_longest_verdict_fits_computed_limit() -> None:
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
    ImageVerdictSchema.model_validate(longest)
    size = len(json.dumps(longest, ensure_ascii=False).encode())

    assert size <= max_json_bytes(ImageVerdictSchema) <= size + 60
    assert max_json_bytes(AdVerdictSchema) < max_json_bytes(ImageVerdictSchema)


class Endless(BaseModel):
    words: list[bool]


class Talkative(BaseModel):
    words: str


@pytest.mark.parametrize("model", [Endless, Talkative])
def test_unbounded_schema_is_rejected(model: type[BaseModel]) -> None:
    with pytest.raises(ValueError, match="might never end"):
        max_json_bytes(model)
