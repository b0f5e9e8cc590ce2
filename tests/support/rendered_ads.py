"""Advertisements whose text our own overlay draws, for tests that read it, and a recognition model with Hangul characters."""

import io
from pathlib import Path

from PIL import Image, ImageDraw

from actors.imaging.fonts import load_fonts
from actors.imaging.signature import load_font
from actors.overlay import compose, to_region
from actors.settings import OverlaySettings
from contracts.overlay import Overlay
from contracts.verdict import Region

SETTINGS = OverlaySettings()
CLAIM = {"uri": "file:///nowhere/0.png", "media_type": "image/png", "size": 1, "sha256": "0" * 64}
STANDING_FOR = dict(zip("大小中人口", "가나다라마", strict=True))
"""Chinese characters that the model of `write_hangul_model` reads as Hangul; both take three bytes in UTF-8."""


def render_ad(text: str, size: tuple[int, int] = (512, 512), background: Image.Image | None = None) -> tuple[Image.Image, Region]:
    """The picture with the text where and how the overlay step draws it, and the text's region."""
    file = io.BytesIO()
    (background or Image.effect_noise(size, 40)).convert("RGB").save(file, "PNG")
    command = Overlay.model_validate({"images": [CLAIM], "text": text})
    png, _, placement, _, _ = compose(file.getvalue(), command, SETTINGS, generated=True)
    return Image.open(io.BytesIO(png)).convert("RGB"), to_region(placement, size)


def draw_lines(text: str, font_size: int, *, color: str = "white", background: str = "#202020") -> Image.Image:
    """512 by 512 pixels of one colour, with the text at the upper left."""
    picture = Image.new("RGB", (512, 512), background)
    face = next(face for face in load_fonts(()) if face.supports(text.replace("\n", "")))
    ImageDraw.Draw(picture).text((24, 24), text, fill=color, font=load_font(face.path, font_size))
    return picture


def write_hangul_model(path: Path) -> Path:
    """The model of the package, whose list of characters has Hangul in place of five Chinese characters."""
    import rapidocr

    data = (Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_rec_small.onnx").read_bytes()
    start = data.rindex(b"character\x12")
    head, characters = data[:start], data[start:]
    for chinese, hangul in STANDING_FOR.items():
        assert characters.count(f"\n{chinese}\n".encode()) == 1
        characters = characters.replace(f"\n{chinese}\n".encode(), f"\n{hangul}\n".encode())
    path.write_bytes(head + characters)
    return path
