"""Advertisements drawn by code, with everything that a judge of them should say: the tiny critic's lessons and its examination.

A scene with a line of text over it and, on some, a button. Whether the text can be read follows from the colours by WCAG's formula,
whether it covers the shape from where it lies.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from actors.seeing.contrast import ENOUGH, ratio
from contracts.verdict import AdOpinion, FontOpinion, ImageOpinion
from ops.tiny.drawing import SIDE, Place, within
from ops.tiny.scenes import COLOURS, SHAPES, Scene, any_scene

FONT = Path(__file__).parents[2] / "actors" / "fonts" / "NanumGothic.ttf"
LINES = (
    "Fresh today",
    "New in town",
    "Taste the summer",
    "Made for you",
    "오늘의 새로움",
    "당신을 위한 한 그릇",
    "여름의 맛",
    "새로 나왔어요",
)
CALLS = ("Buy now", "Order today", "지금 주문", "구매하기")
GREYS = ((0, 0, 0), (255, 255, 255), (40, 40, 40), (215, 215, 215))
CLEAR, FAINT = 1.2 * ENOUGH, 0.5 * ENOUGH
"""Contrasts between these are not drawn: even people differ there."""


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Poster:
    """`pixels`: a picture of Pillow's. `line`: the box in which its text stands before one colour, in pixels.

    `scene`: None where no shape was drawn.
    """

    pixels: Any
    line: Box
    scene: Scene | None
    ground: str
    occlusion: bool
    contrast_ok: bool
    cta_present: bool

    @property
    def opinion(self) -> AdOpinion:
        wrong = [words for words, is_so in self._faults if is_so]
        return AdOpinion(
            on_brief=self.scene is not None,
            occlusion=self.occlusion,
            contrast_ok=self.contrast_ok,
            cta_present=self.cta_present,
            analysis="It can go out." if not wrong else "It should not go out.",
            issues=wrong,
        )

    @property
    def _faults(self) -> list[tuple[str, bool]]:
        return [
            ("Nothing is shown.", self.scene is None),
            ("The text covers the shape.", self.occlusion),
            ("The text can hardly be read.", not self.contrast_ok),
            ("Nothing calls upon the viewer.", not self.cta_present),
        ]

    def suits(self, copy: str, meant: Scene) -> ImageOpinion:
        """Whether it shows what its text promises."""
        fits = self.scene == meant
        return ImageOpinion(
            is_valid=fits,
            image_quality_ok=self.scene is not None,
            relevance_score=0.9 if fits else 0.1,
            analysis="It shows what the text says." if fits else "It shows something else.",
            issues=[] if fits else ["Picture and text differ."],
            recommendations=[] if fits else ["Draw it again."],
            font_recommendation=FontOpinion(
                font_style="sans-serif", font_name="NanumGothic", font_size_category="medium",
                font_color_hex="111111" if ratio(COLOURS[self.ground][1], (17, 17, 17)) > ENOUGH else "fafafa", reasoning="It can be read.",
            ),
        )  # fmt: skip


def draw_poster(dice: Random) -> Poster:
    from PIL import Image, ImageDraw

    scene, half = any_scene(dice), dice.uniform(100, 140)
    shown = dice.random() < 0.8
    place = Place(SIDE / 2 + dice.uniform(-60, 60), SIDE / 2 + dice.uniform(-30, 30), half)
    picture = Image.new("RGB", (SIDE, SIDE), COLOURS[scene.ground][1])
    if shown:
        picture.paste(COLOURS[scene.colour][1], mask=stencil(scene.shape, place))
    pen = ImageDraw.Draw(picture)
    covers = shown and dice.random() < 0.5
    clear = dice.random() < 0.5
    behind = COLOURS[scene.colour if covers else scene.ground][1]
    middle = (place.x, place.y) if covers else (SIDE / 2, dice.choice([50.0, 400.0]))
    left, top, right, bottom = write(pen, dice.choice(LINES), middle, ink_for(behind, dice, clear=clear), 60)
    if covers:  # what hangs over the shape's edges stands before another colour
        left, right = max(left, place.x - 0.7 * half), min(right, place.x + 0.7 * half)
    calls = dice.random() < 0.5
    if calls:
        button(pen, dice.choice(CALLS), dice)
    return Poster(picture, (left, top, right, bottom), scene if shown else None, scene.ground, covers, clear, calls)


def stencil(shape: str, place: Place) -> Any:
    import torch
    from PIL import Image

    points = torch.arange(SIDE) + 0.5
    y, x = torch.meshgrid(points, points, indexing="ij")
    return Image.fromarray((within(shape, (x - place.x) / place.half, (y - place.y) / place.half) * 255).byte().numpy())


def write(pen: Any, words: str, middle: tuple[float, float], ink: tuple[int, int, int], size: int) -> Box:
    """In bold. Returns the box that the letters fill."""
    from PIL import ImageFont

    how = {"font": ImageFont.truetype(FONT, size), "anchor": "mm", "stroke_width": size // 30}
    pen.text(middle, words, fill=ink, **how)
    left, top, right, bottom = pen.textbbox(middle, words, **how)
    return left, top, right, bottom


def ink_for(behind: tuple[int, int, int], dice: Random, *, clear: bool) -> tuple[int, int, int]:
    """A colour that can be read before what lies behind it, or one that can hardly be."""
    inks = [*GREYS, *(rgb for _, rgb in COLOURS.values())]
    fitting = [ink for ink in inks if ink != behind and (ratio(ink, behind) >= CLEAR if clear else ratio(ink, behind) <= FAINT)]
    if not fitting:  # a grey in the middle: nothing is very clear before it
        return max(inks, key=lambda ink: ratio(ink, behind)) if clear else behind
    return dice.choice(fitting)


def button(pen: Any, words: str, dice: Random) -> None:
    left, top = SIDE / 2 + dice.uniform(-80, 80) - 100, 444
    pen.rounded_rectangle((left, top, left + 200, top + 56), 28, fill=(250, 250, 250), outline=(17, 17, 17), width=4)
    write(pen, words, (left + 100, top + 28), (17, 17, 17), 28)


def lettering(poster: Poster, patches: int) -> list[int]:
    """For each of patches × patches parts of the picture: 0 no text, 1 text that can be read, 2 text that can hardly be."""
    step = SIDE / patches
    left, top, right, bottom = poster.line
    across = [left <= (part + 0.5) * step <= right for part in range(patches)]
    down = [top <= (part + 0.5) * step <= bottom for part in range(patches)]
    kind = 1 if poster.contrast_ok else 2
    return [kind * (inside and beside) for inside in down for beside in across]


def numbers(poster: Poster) -> tuple[int, ...]:
    """What is to be seen, as classes: four answers, then shape, colour and ground; the last of shapes and colours stand for none."""
    opinion, colours = poster.opinion, list(COLOURS)
    scene = poster.scene
    return (
        *map(int, (opinion.on_brief, opinion.occlusion, opinion.contrast_ok, opinion.cta_present)),
        list(SHAPES).index(scene.shape) if scene else len(SHAPES),
        colours.index(scene.colour) if scene else len(colours),
        colours.index(poster.ground),
    )


CLASSES = (2, 2, 2, 2, len(SHAPES) + 1, len(COLOURS) + 1, len(COLOURS))
