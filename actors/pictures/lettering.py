"""A text laid over a picture: wrapped, placed where the picture is quiet, in a colour that can be read, on a plate where none could.

Sizes are pixels, colours (red, green, blue). Contrast is that of WCAG 2 against the worst tenth of what lies behind the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFilter, ImageStat

from actors.pictures.fonts import Face, Run, runs
from actors.pictures.signing import font_of
from actors.seeing.contrast import ENOUGH, ENOUGH_FOR_LARGE, Color, ratio

WIDEST, HIGHEST = 0.84, 0.34
"""Shares of the picture that a text may take."""
SHARE = {"small": 0.05, "medium": 0.075, "large": 0.11}
"""Height of the letters as a share of the picture's height."""
SMALLEST, LARGEST, LARGE = 10, 96, 24
LINE = 1.3
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
PLATES = (0.55, 0.7, 0.85, 1.0)
"""How strong a plate may be; the weakest that is enough is taken."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Block:
    """A wrapped text of one size, and the room it takes."""

    lines: list[str]
    points: int
    width: int
    height: int

    @property
    def large(self) -> bool:
        return self.points >= LARGE

    @property
    def required(self) -> float:
        return ENOUGH_FOR_LARGE if self.large else ENOUGH


@dataclass(frozen=True)
class Place:
    """Where a text stands, and how it can be read there. `plate`: the colour behind it and its strength."""

    x_align: str
    y_align: str
    box: Box
    color: Color
    contrast: float
    cost: float = 0.0
    plate: tuple[Color, float] | None = None


def block_of(text: str, faces: Sequence[Face], picture: tuple[int, int], category: str) -> Block:
    """The text in the wanted size, or in the largest smaller one in which it fits. Raises PermanentError("glyph-missing")."""
    widest, highest = int(WIDEST * picture[0]), int(HIGHEST * picture[1])
    wanted = max(SMALLEST, min(LARGEST, round(SHARE.get(category, SHARE["medium"]) * picture[1])))
    for points in range(wanted, SMALLEST - 1, -1):
        lines = wrapped(text, faces, points, widest)
        block = Block(lines, points, round(max(width_of(line, faces, points) for line in lines)), round(len(lines) * points * LINE))
        if block.width <= widest and block.height <= highest:
            break
    return block


def wrapped(text: str, faces: Sequence[Face], points: int, widest: int) -> list[str]:
    """Lines no wider than that, broken between words; a word that is too wide alone is broken between letters."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [text]:
        line = ""
        for word in pieces(paragraph.split(), faces, points, widest):
            longer = f"{line} {word}".strip()
            if line and width_of(longer, faces, points) > widest:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return [line for line in lines if line] or [" "]


def pieces(words: Sequence[str], faces: Sequence[Face], points: int, widest: int) -> Iterator[str]:
    for word in words:
        piece = ""
        for letter in word:
            if piece and width_of(piece + letter, faces, points) > widest:
                yield piece
                piece = ""
            piece += letter
        yield piece


def width_of(line: str, faces: Sequence[Face], points: int) -> float:
    return sum(font_of(run.face.path, points).getlength(run.text) for run in _runs(line, faces))


def _runs(line: str, faces: Sequence[Face]) -> list[Run]:
    return runs(line, faces) if line.strip() else []


def places(picture: Image.Image, block: Block, aligns: Sequence[tuple[str, str]], margin: int, colors: Sequence[Color]) -> Iterator[Place]:
    """Each place with its best colour and its cost: busy ground and poor contrast cost, and the middle a little."""
    edges = picture.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    for number, (x_align, y_align) in enumerate(aligns):
        box = box_of(picture.size, block, x_align, y_align, margin)
        ground = picture.crop(box)
        contrast, color = max(((against(ground, color), color) for color in colors), key=lambda pair: pair[0])
        busy = ImageStat.Stat(edges.crop(box)).mean[0] / 255
        cost = 4 * busy + max(0.0, 1 - contrast / block.required) - min(contrast, 12) / 24 + 0.01 * number
        yield Place(x_align, y_align, box, color, contrast, cost)


def box_of(picture: tuple[int, int], block: Block, x_align: str, y_align: str, margin: int) -> Box:
    """Left, top, right, bottom of the plate: the block and its padding, inside the margin."""
    pad = max(2, block.points // 3)
    width, height = min(picture[0], block.width + 2 * pad), min(picture[1], block.height + 2 * pad)
    free = {"x": picture[0] - width, "y": picture[1] - height}
    left = {"left": min(margin, free["x"]), "center": free["x"] // 2, "right": max(0, free["x"] - margin)}[x_align]
    top = {"top": min(margin, free["y"]), "middle": free["y"] // 2, "bottom": max(0, free["y"] - margin)}[y_align]
    return left, top, left + width, top + height


def against(ground: Image.Image, color: Color) -> float:
    """The contrast that nine tenths of the ground reach or exceed."""
    counts = ground.convert("RGB").resize((24, 24), Image.Resampling.NEAREST).getcolors(576) or []
    rated = sorted((ratio(behind, color), count) for count, behind in counts)  # type: ignore[arg-type]
    left = sum(count for _, count in rated) / 10
    for found, count in rated:
        left -= count
        if left <= 0:
            return found
    return rated[-1][0]


def plated(picture: Image.Image, place: Place, block: Block, wanted: Color | None) -> Place:
    """The place with a plate, when one is wanted or the contrast asks for it."""
    if wanted is None and place.contrast >= block.required:
        return place
    ground = picture.crop(place.box)
    color = wanted or max((BLACK, WHITE), key=lambda plate: ratio(plate, place.color))
    for strength in PLATES:
        contrast = against(Image.blend(ground, Image.new("RGB", ground.size, color), strength), place.color)
        if contrast >= block.required:
            break
    return replace(place, plate=(color, strength), contrast=contrast)


def lettered(picture: Image.Image, place: Place, block: Block, faces: Sequence[Face]) -> Image.Image:
    """A copy of an RGB picture with the plate and the text on it."""
    done = picture.copy()
    if place.plate:
        color, strength = place.plate
        ground = done.crop(place.box)
        done.paste(Image.blend(ground, Image.new("RGB", ground.size, color), strength), place.box[:2])
    draw, pad = ImageDraw.Draw(done), max(2, block.points // 3)
    left, top, right, _ = place.box
    for number, line in enumerate(block.lines):
        spare = right - left - 2 * pad - width_of(line, faces, block.points)
        pen = left + pad + {"left": 0.0, "center": spare / 2, "right": spare}[place.x_align]
        baseline = top + pad + (number + 0.8) * block.points * LINE
        for run in _runs(line, faces):
            font = font_of(run.face.path, block.points)
            draw.text((pen, baseline), run.text, place.color, font, anchor="ls")
            pen += font.getlength(run.text)
    return done
