"""The font of a recommendation, in its five fields and in the three of the source system's prompt."""

import pytest
from pydantic import ValidationError

from contracts.overlay import Overlay
from contracts.validate import OverlayFont
from gateway.strict_model import strict_model

CLAIM = {"uri": "s3://b/x", "sha256": "ab" * 32, "media_type": "image/png", "size": 1}
THREE = {"style": "bold", "size": "large", "color": "light"}


@pytest.mark.parametrize(
    "font", [THREE, {"font_style": "bold", "font_name": "", "font_size_category": "large", "font_color_hex": "ffffff", "reasoning": ""}]
)
def test_both_forms_of_a_font_are_accepted_wherever_it_enters(font: dict[str, str]) -> None:
    expected = OverlayFont(font_style="bold", font_size_category="large", font_color_hex="ffffff")
    body = {"images": [CLAIM], "text": "SALE", "font_recommendation": font}
    assert Overlay.model_validate(body).font_recommendation == expected
    assert strict_model(Overlay, without=("slip",)).model_validate(body).font_recommendation.model_dump() == expected.model_dump()


def test_dark_is_black_and_other_colours_stay() -> None:
    colors = [OverlayFont.model_validate(THREE | {"color": color}).font_color_hex for color in (" Dark", "#12ab34", "teal")]
    assert colors == ["000000", "#12ab34", "teal"]


def test_font_without_a_size_is_refused() -> None:
    with pytest.raises(ValidationError, match="size"):
        OverlayFont.model_validate({"style": "bold", "color": "light"})
