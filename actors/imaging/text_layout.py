"""A text laid over a picture: wrapped, placed where the picture is quiet, in a colour that can be read, on a plate where none could.

Sizes are pixels, colours (red, green, blue). Contrast is that of WCAG 2 against the worst tenth of what lies behind the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFilter, ImageStat

from actors.imaging.contrast import MIN_CONTRAST, MIN_CONTRAST_LARGE_TEXT, Color, contrast_ratio
from actors.imaging.fonts import FontFace, TextRun, split_into_runs
from actors.imaging.signature import load_font

MAX_WIDTH_SHARE, MAX_HEIGHT_SHARE = 0.84, 0.34
"""Shares of the picture that a text may take."""
TEXT_HEIGHT_SHARE = {"small": 0.05, "medium": 0.075, "large": 0.11}
"""Height of the letters as a share of the picture's height."""
MIN_FONT_SIZE, MAX_FONT_SIZE, LARGE_TEXT_SIZE = 10, 96, 24
LINE_HEIGHT = 1.3
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
BACKDROP_OPACITIES = (0.55, 0.7, 0.85, 1.0)
"""How strong a plate may be; the weakest that is enough is taken."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class TextBlock:
    """A wrapped text of one size, and the room it takes."""

    lines: list[str]
    font_size: int
    width: int
    height: int

    @property
    def is_large(self) -> bool:
        return self.font_size >= LARGE_TEXT_SIZE

    @property
    def required_contrast(self) -> float:
        return MIN_CONTRAST_LARGE_TEXT if self.is_large else MIN_CONTRAST


@dataclass(frozen=True)
class Placement:
    """Where a text stands, and how it can be read there. `plate`: the colour behind it and its strength."""

    x_align: str
    y_align: str
    box: Box
    color: Color
    contrast: float
    cost: float = 0.0
    backdrop: tuple[Color, float] | None = None


def fit_text(text: str, faces: Sequence[FontFace], picture: tuple[int, int], category: str) -> TextBlock:
    """The text in the wanted size, or in the largest smaller one in which it fits. Raises PermanentError("glyph-missing")."""
    widest, highest = int(MAX_WIDTH_SHARE * picture[0]), int(MAX_HEIGHT_SHARE * picture[1])
    wanted = max(MIN_FONT_SIZE, min(MAX_FONT_SIZE, round(TEXT_HEIGHT_SHARE.get(category, TEXT_HEIGHT_SHARE["medium"]) * picture[1])))
    for points in range(wanted, MIN_FONT_SIZE - 1, -1):
        lines = wrap_text(text, faces, points, widest)
        block = TextBlock(
            lines, points, round(max(measure_width(line, faces, points) for line in lines)), round(len(lines) * points * LINE_HEIGHT)
        )
        if block.width <= widest and block.height <= highest:
            break
    return block


def wrap_text(text: str, faces: Sequence[FontFace], font_size: int, max_width: int) -> list[str]:
    """Lines no wider than that, broken between words; a word that is too wide alone is broken between letters."""
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
    for word in words:
        piece = ""
        for letter in word:
            if piece and measure_width(piece + letter, faces, font_size) > max_width:
                yield piece
                piece = ""
            piece += letter
        yield piece


def measure_width(line: str, faces: Sequence[FontFace], font_size: int) -> float:
    return sum(load_font(run.face.path, font_size).getlength(run.text) for run in _line_runs(line, faces))


def _line_runs(line: str, faces: Sequence[FontFace]) -> list[TextRun]:
    return split_into_runs(line, faces) if line.strip() else []


def candidate_placements(
    picture: Image.Image, block: TextBlock, aligns: Sequence[tuple[str, str]], margin: int, colors: Sequence[Color]
) -> Iterator[Placement]:
    """Each place with its best colour and its cost: busy ground and poor contrast cost, and the middle a little."""
    edges = picture.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    for number, (x_align, y_align) in enumerate(aligns):
        box = placement_box(picture.size, block, x_align, y_align, margin)
        ground = picture.crop(box)
        contrast, color = max(((contrast_against(ground, color), color) for color in colors), key=lambda pair: pair[0])
        busy = ImageStat.Stat(edges.crop(box)).mean[0] / 255
        cost = 4 * busy + max(0.0, 1 - contrast / block.required_contrast) - min(contrast, 12) / 24 + 0.01 * number
        yield Placement(x_align, y_align, box, color, contrast, cost)


def placement_box(picture: tuple[int, int], block: TextBlock, x_align: str, y_align: str, margin: int) -> Box:
    """Left, top, right, bottom of the plate: the block and its padding, inside the margin."""
    pad = max(2, block.font_size // 3)
    width, height = min(picture[0], block.width + 2 * pad), min(picture[1], block.height + 2 * pad)
    free = {"x": picture[0] - width, "y": picture[1] - height}
    left = {"left": min(margin, free["x"]), "center": free["x"] // 2, "right": max(0, free["x"] - margin)}[x_align]
    top = {"top": min(margin, free["y"]), "middle": free["y"] // 2, "bottom": max(0, free["y"] - margin)}[y_align]
    return left, top, left + width, top + height


def contrast_against(background: Image.Image, color: Color) -> float:
    """The contrast that nine tenths of the ground reach or exceed."""
    counts = background.convert("RGB").resize((24, 24), Image.Resampling.NEAREST).getcolors(576) or []
    rated = sorted((contrast_ratio(behind, color), count) for count, behind in counts)  # type: ignore[arg-type]
    left = sum(count for _, count in rated) / 10
    for found, count in rated:
        left -= count
        if left <= 0:
            return found
    return rated[-1][0]


def with_backdrop(picture: Image.Image, placement: Placement, block: TextBlock, color_override: Color | None) -> Placement:
    """The place with a plate, when one is wanted or the contrast asks for it."""
    if color_override is None and placement.contrast >= block.required_contrast:
        return placement
    ground = picture.crop(placement.box)
    color = color_override or max((BLACK, WHITE), key=lambda plate: contrast_ratio(plate, placement.color))
    for strength in BACKDROP_OPACITIES:
        contrast = contrast_against(Image.blend(ground, Image.new("RGB", ground.size, color), strength), placement.color)
        if contrast >= block.required_contrast:
            break
    return replace(placement, backdrop=(color, strength), contrast=contrast)


def draw_text(picture: Image.Image, placement: Placement, block: TextBlock, faces: Sequence[FontFace]) -> Image.Image:
    """A copy of an RGB picture with the plate and the text on it."""
    done = picture.copy()
    if placement.backdrop:
        color, strength = placement.backdrop
        ground = done.crop(placement.box)
        done.paste(Image.blend(ground, Image.new("RGB", ground.size, color), strength), placement.box[:2])
    draw, pad = ImageDraw.Draw(done), max(2, block.font_size // 3)
    left, top, right, _ = placement.box
    for number, line in enumerate(block.lines):
        spare = right - left - 2 * pad - measure_width(line, faces, block.font_size)
        pen = left + pad + {"left": 0.0, "center": spare / 2, "right": spare}[placement.x_align]
        baseline = top + pad + (number + 0.8) * block.font_size * LINE_HEIGHT
        for run in _line_runs(line, faces):
            font = load_font(run.face.path, block.font_size)
            draw.text((pen, baseline), run.text, placement.color, font, anchor="ls")
            pen += font.getlength(run.text)
    return done
