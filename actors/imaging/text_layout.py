"""Lays a text over a picture: wraps it, places it where the picture has few edges, chooses a readable colour, adds a backdrop if needed.

Sizes are pixels, colours (red, green, blue). Contrast is WCAG 2 contrast at the tenth percentile of the background's pixels.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter, ImageStat

from actors.imaging.contrast import (
    LARGE_TEXT_PIXELS,
    MIN_CONTRAST,
    MIN_CONTRAST_LARGE_TEXT,
    Color,
    contrast_ratio,
    count_pixels,
    tenth_percentile,
)
from actors.imaging.fonts import FontFace
from actors.imaging.signature import load_font
from actors.imaging.text_runs import TextRun, split_into_runs
from contracts.drawn_text import split_clusters

MAX_WIDTH_SHARE, MAX_HEIGHT_SHARE = 0.84, 0.34
"""Largest shares of the picture's width and height for the text."""
TEXT_HEIGHT_SHARE = {"small": 0.05, "medium": 0.075, "large": 0.11}
"""Font size as a share of the picture's height."""
MIN_FONT_SIZE, MAX_FONT_SIZE = 10, 96
LINE_HEIGHT = 1.3
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
BACKDROP_OPACITIES = (0.55, 0.7, 0.85, 1.0)
"""Opacities of a backdrop; the lowest that gives enough contrast is used."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class TextBlock:
    """A wrapped text of one font size, and its width and height."""

    lines: list[str]
    font_size: int
    width: int
    height: int

    @property
    def is_large(self) -> bool:
        return self.font_size >= LARGE_TEXT_PIXELS

    @property
    def required_contrast(self) -> float:
        return MIN_CONTRAST_LARGE_TEXT if self.is_large else MIN_CONTRAST


@dataclass(frozen=True)
class Placement:
    """A position of the text, with its colour and contrast there. `backdrop`: its colour and opacity."""

    x_align: str
    y_align: str
    box: Box
    color: Color
    contrast: float
    cost: float = 0.0
    backdrop: tuple[Color, float] | None = None


def fit_text(text: str, faces: Sequence[FontFace], picture: tuple[int, int], category: str) -> TextBlock:
    """The text in the font size of `category`, or in the largest smaller one that fits, found by bisection.

    Raises PermanentError("glyph-missing").
    """
    max_width, max_height = int(MAX_WIDTH_SHARE * picture[0]), int(MAX_HEIGHT_SHARE * picture[1])
    preferred = max(MIN_FONT_SIZE, min(MAX_FONT_SIZE, round(TEXT_HEIGHT_SHARE.get(category, TEXT_HEIGHT_SHARE["medium"]) * picture[1])))
    block = lay_out(text, faces, preferred, max_width)
    fits, too_large = MIN_FONT_SIZE, preferred
    if block.width <= max_width and block.height <= max_height:
        return block
    while too_large - fits > 1:
        font_size = (fits + too_large) // 2
        block = lay_out(text, faces, font_size, max_width)
        if block.width <= max_width and block.height <= max_height:
            fits = font_size
        else:
            too_large = font_size
    return lay_out(text, faces, fits, max_width)


def lay_out(text: str, faces: Sequence[FontFace], font_size: int, max_width: int) -> TextBlock:
    lines = wrap_text(text, faces, font_size, max_width)
    width = round(max(measure_width(line, faces, font_size) for line in lines))
    return TextBlock(lines, font_size, width, height=round(len(lines) * font_size * LINE_HEIGHT))


def wrap_text(text: str, faces: Sequence[FontFace], font_size: int, max_width: int) -> list[str]:
    """Lines no wider than `max_width`, broken between words; a word that is too wide is broken between clusters."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [text]:
        line = ""
        for word in split_words(paragraph.split(), faces, font_size, max_width):
            longer = f"{line} {word}".strip()
            if line and measure_width(longer, faces, font_size) > max_width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return [line for line in lines if line] or [" "]


def split_words(words: Sequence[str], faces: Sequence[FontFace], font_size: int, max_width: int) -> Iterator[str]:
    """The words; of one that is too wide the longest beginnings that fit, each found by bisection."""

    def width(clusters: Sequence[str]) -> int:
        return math.ceil(measure_width("".join(clusters), faces, font_size))

    for word in words:
        rest = list(split_clusters(word))
        while len(rest) > 1 and width(rest) > max_width:
            count = bisect_right(range(1, len(rest)), max_width, key=lambda count: width(rest[:count])) or 1
            yield "".join(rest[:count])
            del rest[:count]
        yield "".join(rest)


def measure_width(line: str, faces: Sequence[FontFace], font_size: int) -> float:
    return sum(measure_run(run, font_size) for run in _line_runs(line, faces))


@lru_cache(4096)
def measure_run(run: TextRun, font_size: int) -> float:
    """The same short runs come again and again where each word has several fonts."""
    return load_font(run.face.path, font_size).getlength(run.text, direction=run.direction)


def _line_runs(line: str, faces: Sequence[FontFace]) -> list[TextRun]:
    return split_into_runs(line, faces) if line.strip() else []


def candidate_placements(
    picture: Image.Image, block: TextBlock, aligns: Sequence[tuple[str, str]], margin: int, colors: Sequence[Color]
) -> Iterator[Placement]:
    """Each position with its best colour and its cost: edges behind the text, low contrast, and a late place in `aligns`."""
    edges = picture.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    for number, (x_align, y_align) in enumerate(aligns):
        box = placement_box(picture.size, block, x_align, y_align, margin)
        background = picture.crop(box)
        contrast, color = max(((contrast_against(background, color), color) for color in colors), key=lambda pair: pair[0])
        edge_density = ImageStat.Stat(edges.crop(box)).mean[0] / 255
        cost = 4 * edge_density + max(0.0, 1 - contrast / block.required_contrast) - min(contrast, 12) / 24 + 0.01 * number
        yield Placement(x_align, y_align, box, color, contrast, cost)


def placement_box(picture: tuple[int, int], block: TextBlock, x_align: str, y_align: str, margin: int) -> Box:
    """Left, top, right and bottom of the block with its padding, inside the margin."""
    pad = max(2, block.font_size // 3)
    width, height = min(picture[0], block.width + 2 * pad), min(picture[1], block.height + 2 * pad)
    free = {"x": picture[0] - width, "y": picture[1] - height}
    left = {"left": min(margin, free["x"]), "center": free["x"] // 2, "right": max(0, free["x"] - margin)}[x_align]
    top = {"top": min(margin, free["y"]), "middle": free["y"] // 2, "bottom": max(0, free["y"] - margin)}[y_align]
    return left, top, left + width, top + height


def contrast_against(background: Image.Image, color: Color) -> float:
    """The contrast that nine tenths of the background's pixels reach or exceed."""
    sample = background.convert("RGB").resize((24, 24), Image.Resampling.NEAREST)
    return tenth_percentile([(contrast_ratio(pixel, color), count, pixel) for count, pixel in count_pixels(sample)])[0]


def with_backdrop(picture: Image.Image, placement: Placement, block: TextBlock, color_override: Color | None) -> Placement:
    """The placement with a backdrop, when its colour is given or the contrast is too low."""
    if color_override is None and placement.contrast >= block.required_contrast:
        return placement
    background = picture.crop(placement.box)
    color = color_override or max((BLACK, WHITE), key=lambda backdrop: contrast_ratio(backdrop, placement.color))
    for opacity in BACKDROP_OPACITIES:
        contrast = contrast_against(blend_color(background, color, opacity), placement.color)
        if contrast >= block.required_contrast:
            break
    return replace(placement, backdrop=(color, opacity), contrast=contrast)


def blend_color(picture: Image.Image, color: Color, opacity: float) -> Image.Image:
    return Image.blend(picture, Image.new("RGB", picture.size, color), opacity)


def draw_text(picture: Image.Image, placement: Placement, block: TextBlock, faces: Sequence[FontFace]) -> Image.Image:
    """A copy of an RGB picture with the backdrop and the text on it."""
    done = picture.copy()
    if placement.backdrop:
        done.paste(blend_color(done.crop(placement.box), *placement.backdrop), placement.box[:2])
    draw, pad = ImageDraw.Draw(done), max(2, block.font_size // 3)
    left, top, right, _ = placement.box
    for number, line in enumerate(block.lines):
        spare = right - left - 2 * pad - measure_width(line, faces, block.font_size)
        pen = left + pad + {"left": 0.0, "center": spare / 2, "right": spare}[placement.x_align]
        baseline = top + pad + (number + 0.8) * block.font_size * LINE_HEIGHT
        for run in _line_runs(line, faces):
            font = load_font(run.face.path, block.font_size)
            draw.text((pen, baseline), run.text, placement.color, font, direction=run.direction, anchor="ls")
            pen += measure_run(run, block.font_size)
    return done
