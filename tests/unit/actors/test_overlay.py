"""The overlay actor: the text's position and contrast, and the reported layout."""

import io
from typing import Any

import pytest
from anyio import CapacityLimiter
from PIL import Image, ImageChops, ImageDraw

from actors.imaging.contrast import contrast_ratio
from actors.imaging.fonts import load_fonts
from actors.imaging.png_metadata import encode_png
from actors.imaging.text_layout import fit_text, measure_width, wrap_text
from actors.overlay import overlay
from actors.settings import OverlaySettings
from bus.actor import Context
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.overlay import Overlay, OverlayDone

GREY = (110, 110, 110)


class OverlayRig:
    """Stores pictures and runs the actor on them."""

    def __init__(self, claims: ClaimStore, context: Context) -> None:
        self.claims, self.context = claims, context

    async def draw(self, picture: Image.Image, text: str = "SALE TODAY", **command: Any) -> tuple[OverlayDone, Image.Image]:
        file = io.BytesIO()
        picture.save(file, "PNG")
        claim = await self.claims.write(file.getvalue(), media_type="image/png", tenant=None)
        order = Overlay.model_validate({"images": [claim.model_dump()], "text": text, **command})
        done = await overlay(order, self.context, claims=self.claims, database=None, settings=OverlaySettings(), threads=CapacityLimiter(2))
        assert isinstance(done, OverlayDone)
        return done, Image.open(io.BytesIO(await self.claims.read(done.images[0], tenant=None))).convert("RGB")


@pytest.fixture
def overlay_rig(claims: ClaimStore, context: Context) -> OverlayRig:
    return OverlayRig(claims, context)


def plain(color: tuple[int, int, int] = GREY, side: int = 400) -> Image.Image:
    return Image.new("RGB", (side, side), color)


def striped_except(box: tuple[int, int, int, int], color: tuple[int, int, int] = GREY) -> Image.Image:
    """A picture with stripes everywhere but in `box`."""
    picture = plain()
    draw = ImageDraw.Draw(picture)
    for x in range(0, 400, 8):
        draw.rectangle((x, 0, x + 3, 400), fill="white")
    draw.rectangle(box, fill=color)
    return picture


@pytest.mark.parametrize(
    "text", ["SALE TODAY", "따뜻한 한 그릇, 오늘만 반값", "Łódź — 서울", "한글로만이루어진띄어쓰기없는아주긴문장입니다정말로길어요"]
)
async def test_drawn_text_stays_within_reported_region(overlay_rig: OverlayRig, text: str) -> None:
    done, picture = await overlay_rig.draw(plain(), text)
    box = ImageChops.difference(picture, plain()).getbbox()
    region = done.text_region
    assert box is not None
    assert region.x * 400 <= box[0] < box[2] <= (region.x + region.width) * 400 + 1
    assert region.y * 400 <= box[1] < box[3] <= (region.y + region.height) * 400 + 1


@pytest.mark.parametrize(
    ("box", "y_align"),
    [((0, 0, 400, 130), "top"), ((0, 270, 400, 400), "bottom"), ((0, 135, 400, 265), "middle")],
)
async def test_text_is_placed_in_low_detail_region(overlay_rig: OverlayRig, box: tuple[int, int, int, int], y_align: str) -> None:
    done, _ = await overlay_rig.draw(striped_except(box))
    assert done.layout["y_align"] == y_align


async def test_requested_region_is_used_and_protected_region_avoided(overlay_rig: OverlayRig) -> None:
    aligned, _ = await overlay_rig.draw(plain(), x_align="right", y_align="bottom")
    free, _ = await overlay_rig.draw(plain(), protected_region={"x": 0, "y": 0, "width": 1, "height": 0.5})
    assert (aligned.layout["x_align"], aligned.layout["y_align"]) == ("right", "bottom")
    assert free.text_region.y >= 0.5


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (119, 119, 119), (200, 30, 30), (250, 240, 60)])
@pytest.mark.parametrize("color", [None, "777777", "#FFFF00"])
async def test_text_contrast_is_always_sufficient(overlay_rig: OverlayRig, background: tuple[int, int, int], color: str | None) -> None:
    """The reported contrast is the real one and is high enough; a backdrop is added where no text colour suffices."""
    done, picture = await overlay_rig.draw(plain(background), **({"text_color": color} if color else {}))
    assert done.contrast_ratio >= done.contrast_required
    backdrop = picture.getpixel((round(done.text_region.x * 400) + 1, round(done.text_region.y * 400) + 1))
    text = tuple(int(done.text_color[at : at + 2], 16) for at in (0, 2, 4))
    assert contrast_ratio(backdrop, text) == pytest.approx(done.contrast_ratio, abs=0.1)  # type: ignore[arg-type]


async def test_recommended_colour_is_used_when_readable(overlay_rig: OverlayRig) -> None:
    font = {"font_style": "bold", "font_name": "x", "font_size_category": "large", "font_color_hex": "ffffff", "reasoning": "r"}
    done, _ = await overlay_rig.draw(plain((10, 10, 10)), font_recommendation=font)
    small, _ = await overlay_rig.draw(
        plain((10, 10, 10)), font_recommendation=font | {"font_size_category": "small", "font_color_hex": "red?"}
    )
    assert done.text_color == "ffffff"
    assert done.layout["font_size"] > small.layout["font_size"]


async def test_layout_has_fields_of_the_source_system(overlay_rig: OverlayRig) -> None:
    done, picture = await overlay_rig.draw(plain(), "오늘만\n반값")
    assert set(done.layout) == {
        *("text", "wrapped_text", "x_align", "y_align", "text_size", "font_name", "font_size", "font_path"),
        *("overlay_color", "text_color", "margin", "render"),
    }
    assert done.layout["wrapped_text"] == "오늘만\n반값"
    assert done.layout["font_name"] == "NanumGothic"
    assert done.layout["render"]["url"] == done.images[0].uri
    assert (done.layout["render"]["width"], done.layout["render"]["height"]) == picture.size
    assert done.bare_image.sha256 != done.images[0].sha256


async def test_same_command_gives_same_overlay(overlay_rig: OverlayRig) -> None:
    first, _ = await overlay_rig.draw(plain())
    second, _ = await overlay_rig.draw(plain())
    assert first == second


def test_only_words_that_are_too_wide_are_broken() -> None:
    faces = load_fonts()
    lines = wrap_text("aa bb 따뜻한그릇따뜻한그릇따뜻한그릇 cc", faces, 20, 100)
    assert all(measure_width(line, faces, 20) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == "aabb따뜻한그릇따뜻한그릇따뜻한그릇cc"
    assert lines[0].startswith("aa bb")


def test_long_text_gets_smaller_font_size() -> None:
    faces = load_fonts()
    assert fit_text("word " * 60, faces, (400, 400), "large").font_size < fit_text("word", faces, (400, 400), "large").font_size


@pytest.mark.parametrize(
    ("command", "code"),
    [({"text": "\u200b"}, "text-empty"), ({"text": "\U00013000"}, "glyph-missing"), ({"job_variants_id": "x"}, "invalid-uuid")],
)
async def test_impossible_overlay_names_reason(overlay_rig: OverlayRig, command: dict[str, Any], code: str) -> None:
    with pytest.raises(PermanentError) as raised:
        await overlay_rig.draw(plain(), **command)
    assert raised.value.code == code


@pytest.mark.parametrize(("generated", "model"), [(True, "painter"), (False, None)])
async def test_text_chunks_of_the_picture_are_kept(overlay_rig: OverlayRig, claims: ClaimStore, generated: bool, model: str | None) -> None:
    """An advertisement names the model that drew its picture; one that came from outside claims no model."""
    data = encode_png(plain(), {"model": "painter", "Title": "harbour"})
    claim = await claims.write(data, media_type="image/png", tenant=None, generated=generated)
    order = Overlay.model_validate({"images": [claim.model_dump()], "text": "SALE"})
    done = await overlay(order, overlay_rig.context, claims=claims, database=None, settings=OverlaySettings(), threads=CapacityLimiter(1))
    assert isinstance(done, OverlayDone)
    with Image.open(io.BytesIO(await claims.read(done.images[0], tenant=None))) as picture:
        assert (picture.text.get("model"), picture.text["Title"]) == (model, "harbour")  # type: ignore[attr-defined]
