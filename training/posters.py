"""Posters drawn by code, with the verdicts that they should get, for the training and the evaluation of tiny-critic.

A scene with an advertising text over it, set as the overlay step sets it, and on some a button. Whether the text is readable follows from
the colours by WCAG's formula; whether it covers the shape, from its position: in the middle, or above or below.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from actors.imaging.contrast import MIN_CONTRAST, Color, contrast_ratio
from actors.imaging.fonts import load_fonts
from actors.imaging.text_layout import Placement as Spot
from actors.imaging.text_layout import draw_text as draw_overlay_text
from actors.imaging.text_layout import fit_text, placement_box, with_backdrop
from contracts.verdict import AdVerdictSchema, FontVerdictSchema, ImageVerdictSchema
from training.scenes import COLOURS, SHAPES, Scene, random_scene
from training.shape_masks import IMAGE_SIZE, ShapePlacement, is_inside
from training.slogans import slogans

FONT_FILE = Path(__file__).parents[1] / "actors" / "fonts" / "NanumGothic.ttf"
BUTTON_LABELS = ("Buy now", "Order today", "지금 주문", "구매하기")
GREYS = ((0, 0, 0), (255, 255, 255), (40, 40, 40), (215, 215, 215))
TEXT_COLORS = (*GREYS, *(rgb for _, rgb in COLOURS.values()))
MIN_READABLE_CONTRAST, MAX_UNREADABLE_CONTRAST = MIN_CONTRAST, 0.5 * MIN_CONTRAST
"""Contrasts between these are not drawn: even people disagree there."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Poster:
    """`pixels`: a Pillow image. `text_box`: left, top, right, bottom of the text in front of one colour, in pixels.

    `scene`: None where no shape was drawn.
    """

    pixels: Any
    text_box: Box
    scene: Scene | None
    ground: str
    occlusion: bool
    contrast_ok: bool
    cta_present: bool

    @property
    def expected_verdict(self) -> AdVerdictSchema:
        issues = [text for text, present in self._faults if present]
        return AdVerdictSchema(
            on_brief=self.scene is not None,
            occlusion=self.occlusion,
            contrast_ok=self.contrast_ok,
            cta_present=self.cta_present,
            analysis="It can go out." if not issues else "It should not go out.",
            issues=issues,
        )

    @property
    def _faults(self) -> list[tuple[str, bool]]:
        return [
            ("Nothing is shown.", self.scene is None),
            ("The text covers the shape.", self.occlusion),
            ("The text can hardly be read.", not self.contrast_ok),
            ("Nothing calls upon the viewer.", not self.cta_present),
        ]

    def expected_validation(self, target_scene: Scene) -> ImageVerdictSchema:
        """Whether it shows a shape, and whether that matches a text about `target_scene`."""
        fits = self.scene == target_scene
        return ImageVerdictSchema(
            is_valid=self.scene is not None,
            image_quality_ok=self.scene is not None,
            relevance_score=0.9 if fits else 0.1,
            analysis="It shows what the text says." if fits else "It shows something else.",
            issues=[] if fits else ["Picture and text differ."],
            recommendations=[] if fits else ["Draw it again."],
            font_recommendation=FontVerdictSchema(
                font_style="sans-serif", font_name="NanumGothic", font_size_category="large",
                font_color_hex="111111" if contrast_ratio(COLOURS[self.ground][1], (17, 17, 17)) > MIN_CONTRAST else "fafafa",
                reasoning="It can be read.",
            ),
        )  # fmt: skip


def draw_poster(rng: Random, *, without_text: bool = False) -> Poster:
    """`without_text`: the scene alone, which nothing covers and on which nothing is hard to read."""
    from PIL import ImageDraw

    scene, has_shape = random_scene(rng), rng.random() < 0.8
    place = ShapePlacement(IMAGE_SIZE / 2 + rng.uniform(-25, 25), IMAGE_SIZE / 2 + rng.uniform(-25, 25), rng.uniform(110, 180))
    picture = draw_scene(scene, place if has_shape else None, rng)
    if without_text:
        return Poster(picture, (0, 0, 0, 0), scene if has_shape else None, scene.ground, False, True, False)
    covers, readable = has_shape and rng.random() < 0.5, rng.random() < 0.5
    aligned = "middle" if covers else rng.choice(("top", "bottom"))
    picture, text_box = draw_text(picture, [scene.colour, scene.ground] if covers else [scene.ground], aligned, rng, readable=readable)
    if covers:  # what extends beyond the shape is in front of another colour
        text_box = (
            max(text_box[0], place.x - 0.7 * place.half_height),
            text_box[1],
            min(text_box[2], place.x + 0.7 * place.half_height),
            text_box[3],
        )
    has_button = rng.random() < 0.5
    if has_button:
        draw_button(ImageDraw.Draw(picture), 24 if aligned == "bottom" else IMAGE_SIZE - 80, rng)
    return Poster(picture, text_box, scene if has_shape else None, scene.ground, covers, readable, has_button)


def draw_scene(scene: Scene, placement: ShapePlacement | None, rng: Random) -> Any:
    """The colours vary a little, as a model's do."""
    from PIL import Image

    ground, colour = ([round(channel + rng.gauss(0, 6)) for channel in COLOURS[name][1]] for name in (scene.ground, scene.colour))
    picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(ground))
    if placement:
        picture.paste(tuple(colour), mask=shape_mask(scene.shape, placement))
    return picture


def draw_text(picture: Any, background_colors: list[str], vertical_align: str, rng: Random, *, readable: bool) -> tuple[Any, Box]:
    """As the overlay step does, but for the choice of colour. `background_colors`: the colours behind the text. Returns its box, too."""
    fonts = load_fonts()
    text = rng.choice(slogans(random_scene(rng), korean=rng.random() < 0.5))
    block = fit_text(text, fonts, picture.size, rng.choice(("medium", "large")))
    box = placement_box(picture.size, block, "center", vertical_align, 8)
    colors = (
        readable_colors([COLOURS[name][1] for name in background_colors])
        if readable
        else unreadable_colors(COLOURS[background_colors[0]][1])
    )
    if readable and (not colors or rng.random() < 0.3):
        spot = with_backdrop(picture, Spot("center", vertical_align, box, rng.choice(GREYS[:2]), 1.0), block, None)
    else:
        spot = Spot("center", vertical_align, box, rng.choice(colors), 21.0)
    return draw_overlay_text(picture, spot, block, fonts), box


def shape_mask(shape: str, placement: ShapePlacement) -> Any:
    import torch
    from PIL import Image

    points = torch.arange(IMAGE_SIZE) + 0.5
    y, x = torch.meshgrid(points, points, indexing="ij")
    return Image.fromarray(
        (is_inside(shape, (x - placement.x) / placement.half_height, (y - placement.y) / placement.half_height) * 255).byte().numpy()
    )


def readable_colors(backgrounds: list[Color]) -> list[Color]:
    return [color for color in TEXT_COLORS if all(contrast_ratio(color, ground) >= MIN_READABLE_CONTRAST for ground in backgrounds)]


def unreadable_colors(background: Color) -> list[Color]:
    return [color for color in TEXT_COLORS if color != background and contrast_ratio(color, background) <= MAX_UNREADABLE_CONTRAST]


def draw_button(pen: Any, top: float, rng: Random) -> None:
    from PIL import ImageFont

    left = IMAGE_SIZE / 2 + rng.uniform(-80, 80) - 100
    pen.rounded_rectangle((left, top, left + 200, top + 56), 28, fill=(250, 250, 250), outline=(17, 17, 17), width=4)
    pen.text((left + 100, top + 28), rng.choice(BUTTON_LABELS), fill=(17, 17, 17), font=ImageFont.truetype(FONT_FILE, 28), anchor="mm")


def text_patch_labels(poster: Poster, patches: int) -> list[int]:
    """For each of patches × patches parts of the image: 0 no text, 1 readable text, 2 hardly readable text."""
    step = IMAGE_SIZE / patches
    left, top, right, bottom = poster.text_box
    across = [left <= (index + 0.5) * step <= right for index in range(patches)]
    down = [top <= (index + 0.5) * step <= bottom for index in range(patches)]
    kind = 1 if poster.contrast_ok else 2
    return [kind * (in_row and in_column) for in_row in down for in_column in across]


def class_labels(poster: Poster) -> tuple[int, ...]:
    """The classes of a poster: four verdict fields, then shape, colour and ground; the last shape and the last colour stand for none."""
    verdict, colours = poster.expected_verdict, list(COLOURS)
    scene = poster.scene
    return (
        *map(int, (verdict.on_brief, verdict.occlusion, verdict.contrast_ok, verdict.cta_present)),
        list(SHAPES).index(scene.shape) if scene else len(SHAPES),
        colours.index(scene.colour) if scene else len(colours),
        colours.index(poster.ground),
    )


CLASS_COUNTS = (2, 2, 2, 2, len(SHAPES) + 1, len(COLOURS) + 1, len(COLOURS))
