"""The longest answer of a schema is computed, and a schema without limits is rejected."""

import json

import pytest
from pydantic import BaseModel

from actors.vision.schema_limits import max_json_bytes
from contracts.verdict import AdVerdictSchema, ImageVerdictSchema

EMOJI = "🥐"


def test_longest_verdict_fits_computed_limit() -> None:
    longest = {
        "is_valid": False,
        "image_quality_ok": False,
        "relevance_score": 0.123456,
        "analysis": EMOJI * 240,
        "issues": [EMOJI * 100] * 4,
        "recommendations": [EMOJI * 100] * 4,
        "font_recommendation": {
            "font_style": "sans-serif",
            "font_name": EMOJI * 40,
            "font_size_category": "medium",
            "font_color_hex": "ffffff",
            "reasoning": EMOJI * 160,
        },
    }
    ImageVerdictSchema.model_validate(longest)
    size = len(json.dumps(longest, ensure_ascii=False).encode())

    assert size <= max_json_bytes(ImageVerdictSchema) <= size + 60
    assert max_json_bytes(AdVerdictSchema) < max_json_bytes(ImageVerdictSchema)


class UnboundedList(BaseModel):
    words: list[bool]


class UnboundedText(BaseModel):
    words: str


@pytest.mark.parametrize("model", [UnboundedList, UnboundedText])
def test_unbounded_schema_is_rejected(model: type[BaseModel]) -> None:
    with pytest.raises(ValueError, match="might never end"):
        max_json_bytes(model)
