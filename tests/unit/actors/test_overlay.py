"""The overlay actor: where the text goes, that it can be read there, and what is told of it."""

import io
from typing import Any

import pytest
from anyio import CapacityLimiter
from PIL import Image, ImageChops, ImageDraw

from actors.overlay import overlay
from actors.pictures.fonts import load_faces
from actors.pictures.lettering import block_of, width_of, wrapped
from actors.seeing.contrast import ratio
from actors.settings import OverlaySettings
from bus.actor import Context
from bus.claims import ClaimStore
from bus.errors import PermanentError
from contracts.overlay import Overlay, OverlayDone

GREY = (110, 110, 110)


class Press:
    """Letters pictures of the tests."""

    def __init__(self, claims: ClaimStore, context: Context) -> None:
        self.claims, self.context = claims, context

    async def letter(self, picture: Image.Image, text: str = "SALE TODAY", **command: Any) -> tuple[OverlayDone, Image.Image]:
        file = io.BytesIO()
        picture.save(file, "PNG")
        claim = await self.claims.write(file.getvalue(), media_type="image/png")
        order = Overlay.model_validate({"images": [claim.model_dump()], "text": text, **command})
        done = await overlay(order, self.context, claims=self.claims, database=None, settings=OverlaySettings(), threads=CapacityLimiter(2))
        assert isinstance(done, OverlayDone)
        return done, Image.open(io.BytesIO(await self.claims.read(done.images[0]))).convert("RGB")


@pytest.fixture
def press(claims: ClaimStore, context: Context) -> Press:
    return Press(claims, context)


def plain(color: tuple[int, int, int] = GREY, side: int = 400) -> Image.Image:
    return Image.new("RGB", (side, side), color)


def busy_but(box: tuple[int, int, int, int], quiet: tuple[int, int, int] = GREY) -> Image.Image:
    """Stripes everywhere but in a box."""
    picture = plain()
    draw = ImageDraw.Draw(picture)
    for x in range(0, 400, 8):
        draw.rectangle((x, 0, x + 3, 400), fill="white")
    draw.rectangle(box, fill=quiet)
    return picture


@pytest.mark.parametrize(
    "text", ["SALE TODAY", "따뜻한 한 그릇, 오늘만 반값", "Łódź — 서울", "한글로만이루어진띄어쓰기없는아주긴문장입니다정말로길어요"]
)
async def test_the_ink_stays_within_the_region_that_is_told(press: Press, text: str) -> None:
    done, picture = await press.letter(plain(), text)
    box = ImageChops.difference(picture, plain()).getbbox()
    region = done.text_region
    assert box is not None
    assert region.x * 400 <= box[0] < box[2] <= (region.x + region.width) * 400 + 1
    assert region.y * 400 <= box[1] < box[3] <= (region.y + region.height) * 400 + 1


@pytest.mark.parametrize(
    ("box", "place"),
    [((0, 0, 400, 130), "top"), ((0, 270, 400, 400), "bottom"), ((0, 135, 400, 265), "middle")],
)
async def test_the_text_goes_where_the_picture_is_quiet(press: Press, box: tuple[int, int, int, int], place: str) -> None:
    done, _ = await press.letter(busy_but(box))
    assert done.layout["y_align"] == place


async def test_a_place_that_is_told_is_kept_and_a_protected_one_is_left_free(press: Press) -> None:
    told, _ = await press.letter(plain(), x_align="right", y_align="bottom")
    free, _ = await press.letter(plain(), protected_region={"x": 0, "y": 0, "width": 1, "height": 0.5})
    assert (told.layout["x_align"], told.layout["y_align"]) == ("right", "bottom")
    assert free.text_region.y >= 0.5


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), (119, 119, 119), (200, 30, 30), (250, 240, 60)])
@pytest.mark.parametrize("color", [None, "777777", "#FFFF00"])
async def test_the_text_can_always_be_read(press: Press, ground: tuple[int, int, int], color: str | None) -> None:
    """The contrast that is told is the contrast there is, and it is enough; a plate helps where no colour could."""
    done, picture = await press.letter(plain(ground), **({"text_color": color} if color else {}))
    assert done.contrast_ratio >= done.contrast_required
    behind = picture.getpixel((round(done.text_region.x * 400) + 1, round(done.text_region.y * 400) + 1))
    text = tuple(int(done.text_color[at : at + 2], 16) for at in (0, 2, 4))
    assert ratio(behind, text) == pytest.approx(done.contrast_ratio, abs=0.1)  # type: ignore[arg-type]


async def test_a_recommended_colour_is_taken_where_it_can_be_read(press: Press) -> None:
    font = {"font_style": "bold", "font_name": "x", "font_size_category": "large", "font_color_hex": "ffffff", "reasoning": "r"}
    done, _ = await press.letter(plain((10, 10, 10)), font_recommendation=font)
    small, _ = await press.letter(plain((10, 10, 10)), font_recommendation=font | {"font_size_category": "small", "font_color_hex": "red?"})
    assert done.text_color == "ffffff"
    assert done.layout["font_size"] > small.layout["font_size"]


async def test_the_layout_has_what_the_source_system_expects(press: Press) -> None:
    done, picture = await press.letter(plain(), "오늘만\n반값")
    assert set(done.layout) == {
        *("text", "wrapped_text", "x_align", "y_align", "text_size", "font_name", "font_size", "font_path"),
        *("overlay_color", "text_color", "margin", "render"),
    }
    assert done.layout["wrapped_text"] == "오늘만\n반값"
    assert done.layout["font_name"] == "NanumGothic"
    assert done.layout["render"]["url"] == done.images[0].uri
    assert (done.layout["render"]["width"], done.layout["render"]["height"]) == picture.size
    assert done.bare_image.sha256 != done.images[0].sha256


async def test_the_same_command_twice_is_the_same_overlay(press: Press) -> None:
    first, _ = await press.letter(plain())
    second, _ = await press.letter(plain())
    assert first == second


def test_words_stay_whole_and_only_what_is_too_wide_is_broken() -> None:
    faces = load_faces()
    lines = wrapped("aa bb 따뜻한그릇따뜻한그릇따뜻한그릇 cc", faces, 20, 100)
    assert all(width_of(line, faces, 20) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == "aabb따뜻한그릇따뜻한그릇따뜻한그릇cc"
    assert lines[0].startswith("aa bb")


def test_a_long_text_becomes_smaller_letters() -> None:
    faces = load_faces()
    assert block_of("word " * 60, faces, (400, 400), "large").points < block_of("word", faces, (400, 400), "large").points


@pytest.mark.parametrize(
    ("command", "code"),
    [({"text": "\u200b"}, "text-empty"), ({"text": "\U00013000"}, "glyph-missing"), ({"job_variants_id": "x"}, "invalid-uuid")],
)
async def test_what_cannot_be_done_says_why(press: Press, command: dict[str, Any], code: str) -> None:
    with pytest.raises(PermanentError) as refused:
        await press.letter(plain(), **command)
    assert refused.value.code == code
