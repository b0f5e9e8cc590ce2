"""Contrast and coverage measured on generated pictures, contradictions to the model's opinion, and parsed layouts."""

import pytest
from PIL import Image, ImageDraw, ImageFont

from actors.imaging import contrast
from actors.vision.evidence import covered_share, find_disagreements, measure_evidence, overlap_area, to_pixel_box
from actors.vision.overlay_layout import parse_layout
from contracts.verdict import AdVerdictSchema, Evidence, Region

WHOLE = Region(x=0, y=0, width=1, height=1)
HALF = Region(x=0, y=0, width=0.5, height=1)


def make_verdict(**fields: bool) -> AdVerdictSchema:
    defaults = {"on_brief": True, "occlusion": False, "contrast_ok": True, "cta_present": True}
    return AdVerdictSchema.model_validate(defaults | fields | {"analysis": "x", "issues": []})


def text_picture(text: str, background: str) -> Image.Image:
    picture = Image.new("RGB", (240, 80), background)
    ImageDraw.Draw(picture).text((10, 10), "SALE", fill=text, font=ImageFont.load_default(48))
    return picture


@pytest.mark.parametrize(
    ("first", "second", "ratio"),
    [
        ((0, 0, 0), (255, 255, 255), 21.0),
        ((119, 119, 119), (255, 255, 255), 4.48),
        ((255, 0, 0), (255, 255, 255), 4.0),
        ((9, 9, 9), (9, 9, 9), 1.0),
    ],
)
def test_contrast_ratio_matches_wcag(first: contrast.Color, second: contrast.Color, ratio: float) -> None:
    """Reference values of the WCAG definition."""
    assert contrast.contrast_ratio(first, second) == pytest.approx(ratio, abs=0.005)
    assert contrast.contrast_ratio(second, first) == contrast.contrast_ratio(first, second)


@pytest.mark.parametrize(("text", "background"), [("#ffffff", "#202020"), ("#202020", "#ffffff"), ("#ffff00", "#0000ff")])
@pytest.mark.parametrize("color_given", [True, False])
def test_text_contrast_is_measured_with_or_without_its_colour(text: str, background: str, color_given: bool) -> None:
    rgb = tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))
    background_rgb = tuple(int(background[i : i + 2], 16) for i in (1, 3, 5))

    measured = contrast.measure_contrast(text_picture(text, background), rgb if color_given else None)  # type: ignore[arg-type]

    assert measured is not None
    assert measured.text == rgb
    assert measured.ratio == pytest.approx(contrast.contrast_ratio(rgb, background_rgb), rel=0.15)  # type: ignore[arg-type]


def test_picture_of_one_colour_has_no_contrast() -> None:
    assert contrast.measure_contrast(Image.new("RGB", (50, 50), "red")) is None
    measured = contrast.measure_contrast(Image.new("RGB", (50, 50), "red"), (255, 0, 0))
    assert measured is not None
    assert measured.ratio == 1.0


def test_contrast_uses_worst_decile_of_background() -> None:
    """White text on black is unreadable when a quarter of its background is nearly white."""
    picture = Image.new("RGB", (400, 100), "black")
    picture.paste("#dddddd", (300, 0, 400, 100))

    measured = contrast.measure_contrast(picture, (255, 255, 255))

    assert measured is not None
    assert measured.ratio < 1.5


def test_covered_share_counts_changed_pixels_with_bare_picture() -> None:
    bare = Image.new("RGB", (100, 100), "green")
    after = bare.copy()
    after.paste("white", (0, 0, 25, 100))

    assert covered_share(after, bare, HALF, None) == 0.5
    assert covered_share(bare, bare, HALF, None) == 0.0


def test_covered_share_is_overlap_of_boxes_without_bare_picture() -> None:
    picture = Image.new("RGB", (10, 10))
    assert covered_share(picture, None, HALF, Region(x=0.25, y=0, width=0.5, height=0.5)) == 0.25
    assert covered_share(picture, None, HALF, None) is None
    assert overlap_area(HALF, Region(x=0.6, y=0, width=0.1, height=0.1)) == 0


def test_pixel_box_is_never_empty_or_outside() -> None:
    assert to_pixel_box(Region(x=1, y=1, width=1, height=1), (10, 10)) == (9, 9, 10, 10)
    assert to_pixel_box(Region(x=0, y=0, width=0.0001, height=0.5), (10, 10)) == (0, 0, 1, 5)


def test_contradiction_is_an_issue() -> None:
    unreadable = Evidence(contrast_ratio=2.0, contrast_required=4.5, covered_share=0.4)

    assert len(find_disagreements(make_verdict(), unreadable)) == 2
    assert "2:1" in find_disagreements(make_verdict(), unreadable)[0]
    assert find_disagreements(make_verdict(contrast_ok=False, occlusion=True), unreadable) == []
    assert find_disagreements(make_verdict(), Evidence()) == []


def test_large_text_needs_less_contrast() -> None:
    picture = text_picture("#949494", "#ffffff")
    given = {"text_region": WHOLE, "text_color": "949494", "protected": None, "bare": None}

    small, large = (measure_evidence(picture, large_text=size, **given) for size in (False, True))  # type: ignore[arg-type]

    assert find_disagreements(make_verdict(), small) != []
    assert find_disagreements(make_verdict(), large) == []


def test_layout_row_of_the_source_system_is_parsed() -> None:
    row = {
        "layout": {"text": "SALE", "text_color": "ffffffff", "font_size": 48, "render": {"url": "/assets/a.png"}},
        "x_ratio": 0.1,
        "y_ratio": 0.05,
        "width_ratio": 0.8,
        "height_ratio": None,
    }
    layout = parse_layout(row)

    assert layout is not None
    assert (layout.region, layout.large_text, layout.render_url, layout.text) == (None, True, "/assets/a.png", "SALE")
    without_layout = parse_layout(row | {"height_ratio": 0.18, "layout": None})
    assert without_layout is not None
    assert without_layout.region == Region(x=0.1, y=0.05, width=0.8, height=0.18)
