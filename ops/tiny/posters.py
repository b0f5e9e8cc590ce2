"""Advertisements drawn by code, with everything that a judge of them should say: the tiny critic's lessons and its examination.

A scene with an advertisement's text over it, set as the overlay step sets it, and on some a button. Whether the text can be read follows
from the colours by WCAG's formula, whether it covers the shape from where it stands: in the middle, or above or below.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from actors.pictures.fonts import load_faces
from actors.pictures.lettering import Place as Spot
from actors.pictures.lettering import block_of, box_of, lettered, plated
from actors.seeing.contrast import ENOUGH, Color, ratio
from contracts.verdict import AdOpinion, FontOpinion, ImageOpinion
from ops.tiny.drawing import SIDE, Place, within
from ops.tiny.scenes import COLOURS, SHAPES, Scene, any_scene
from ops.tiny.slogans import slogans

FONT = Path(__file__).parents[2] / "actors" / "fonts" / "NanumGothic.ttf"
BUTTONS = ("Buy now", "Order today", "지금 주문", "구매하기")
GREYS = ((0, 0, 0), (255, 255, 255), (40, 40, 40), (215, 215, 215))
INKS = (*GREYS, *(rgb for _, rgb in COLOURS.values()))
CLEAR, FAINT = ENOUGH, 0.5 * ENOUGH
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

    def suits(self, meant: Scene) -> ImageOpinion:
        """Whether it shows anything, and how near that is to what a text about `meant` promises."""
        fits = self.scene == meant
        return ImageOpinion(
            is_valid=self.scene is not None,
            image_quality_ok=self.scene is not None,
            relevance_score=0.9 if fits else 0.1,
            analysis="It shows what the text says." if fits else "It shows something else.",
            issues=[] if fits else ["Picture and text differ."],
            recommendations=[] if fits else ["Draw it again."],
            font_recommendation=FontOpinion(
                font_style="sans-serif", font_name="NanumGothic", font_size_category="large",
                font_color_hex="111111" if ratio(COLOURS[self.ground][1], (17, 17, 17)) > ENOUGH else "fafafa", reasoning="It can be read.",
            ),
        )  # fmt: skip


def draw_poster(dice: Random, *, bare: bool = False) -> Poster:
    """`bare`: the picture alone, which nothing covers and on which nothing is hard to read."""
    from PIL import ImageDraw

    scene, shown = any_scene(dice), dice.random() < 0.8
    place = Place(SIDE / 2 + dice.uniform(-25, 25), SIDE / 2 + dice.uniform(-25, 25), dice.uniform(110, 180))
    picture = draw_scene(scene, place if shown else None, dice)
    if bare:
        return Poster(picture, (0, 0, 0, 0), scene if shown else None, scene.ground, False, True, False)
    covers, clear = shown and dice.random() < 0.5, dice.random() < 0.5
    aligned = "middle" if covers else dice.choice(("top", "bottom"))
    picture, line = letter(picture, [scene.colour, scene.ground] if covers else [scene.ground], aligned, dice, clear=clear)
    if covers:  # what hangs over the shape's edges stands before another colour
        line = (max(line[0], place.x - 0.7 * place.half), line[1], min(line[2], place.x + 0.7 * place.half), line[3])
    calls = dice.random() < 0.5
    if calls:
        button(ImageDraw.Draw(picture), 24 if aligned == "bottom" else SIDE - 80, dice)
    return Poster(picture, line, scene if shown else None, scene.ground, covers, clear, calls)


def draw_scene(scene: Scene, place: Place | None, dice: Random) -> Any:
    """The colours differ a little each time, as a model's do."""
    from PIL import Image

    ground, colour = ([round(part + dice.gauss(0, 6)) for part in COLOURS[name][1]] for name in (scene.ground, scene.colour))
    picture = Image.new("RGB", (SIDE, SIDE), tuple(ground))
    if place:
        picture.paste(tuple(colour), mask=stencil(scene.shape, place))
    return picture


def letter(picture: Any, behind: list[str], aligned: str, dice: Random, *, clear: bool) -> tuple[Any, Box]:
    """As the overlay step does it, but for the choice of ink. `behind`: what colours the text crosses. Returns its box, too."""
    faces = load_faces()
    words = dice.choice(slogans(any_scene(dice), korean=dice.random() < 0.5))
    block = block_of(words, faces, picture.size, dice.choice(("medium", "large")))
    box = box_of(picture.size, block, "center", aligned, 8)
    inks = readable([COLOURS[name][1] for name in behind]) if clear else faint(COLOURS[behind[0]][1])
    if clear and (not inks or dice.random() < 0.3):
        spot = plated(picture, Spot("center", aligned, box, dice.choice(GREYS[:2]), 1.0), block, None)
    else:
        spot = Spot("center", aligned, box, dice.choice(inks), 21.0)
    return lettered(picture, spot, block, faces), box


def stencil(shape: str, place: Place) -> Any:
    import torch
    from PIL import Image

    points = torch.arange(SIDE) + 0.5
    y, x = torch.meshgrid(points, points, indexing="ij")
    return Image.fromarray((within(shape, (x - place.x) / place.half, (y - place.y) / place.half) * 255).byte().numpy())


def readable(behind: list[Color]) -> list[Color]:
    return [ink for ink in INKS if all(ratio(ink, ground) >= CLEAR for ground in behind)]


def faint(behind: Color) -> list[Color]:
    return [ink for ink in INKS if ink != behind and ratio(ink, behind) <= FAINT]


def button(pen: Any, top: float, dice: Random) -> None:
    from PIL import ImageFont

    left = SIDE / 2 + dice.uniform(-80, 80) - 100
    pen.rounded_rectangle((left, top, left + 200, top + 56), 28, fill=(250, 250, 250), outline=(17, 17, 17), width=4)
    pen.text((left + 100, top + 28), dice.choice(BUTTONS), fill=(17, 17, 17), font=ImageFont.truetype(FONT, 28), anchor="mm")


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
