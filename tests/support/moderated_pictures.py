"""Pictures for the tests of moderation, drawn in code: one in which NudeNet sees skin, and one in which it sees nothing."""

import io

from PIL import Image, ImageDraw, ImageFilter

SKIN, SHADE = (224, 172, 140), (150, 100, 80)


def draw_suspicious_picture() -> Image.Image:
    """Two ellipses in the colour of skin, which NudeNet takes for buttocks with a score of about 0.7."""
    picture = Image.new("RGB", (320, 320), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((40, 80, 170, 260), fill=SKIN)
    draw.ellipse((150, 80, 280, 260), fill=SKIN)
    draw.line((160, 100, 160, 260), fill=SHADE, width=5)
    return picture.filter(ImageFilter.GaussianBlur(3))


def draw_harmless_picture() -> Image.Image:
    """A house on a lawn."""
    picture = Image.new("RGB", (320, 240), (120, 180, 240))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 180, 320, 240), fill=(60, 140, 60))
    draw.rectangle((100, 100, 220, 200), fill=(200, 60, 40))
    draw.polygon([(90, 100), (160, 40), (230, 100)], fill=(90, 60, 40))
    draw.rectangle((145, 150, 175, 200), fill=(70, 40, 20))
    return picture


def as_png(picture: Image.Image) -> bytes:
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        return file.getvalue()
