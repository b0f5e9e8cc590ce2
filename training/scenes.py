"""The scenes of tiny-shapes: one shape of one colour on a background of another, with captions in English and in Korean."""

from dataclasses import dataclass
from random import Random

COLOURS: dict[str, tuple[str, tuple[int, int, int]]] = {
    "red": ("빨간", (220, 38, 38)),
    "orange": ("주황", (249, 115, 22)),
    "yellow": ("노란", (250, 204, 21)),
    "green": ("초록", (22, 150, 60)),
    "blue": ("파란", (37, 99, 235)),
    "purple": ("보라", (126, 34, 206)),
    "pink": ("분홍", (244, 114, 182)),
    "black": ("검은", (17, 17, 17)),
    "white": ("흰", (250, 250, 250)),
    "grey": ("회색", (128, 128, 128)),
}
"""English → Korean, and the colour itself in sRGB."""

SHAPES: dict[str, str] = {
    "circle": "원",
    "square": "정사각형",
    "triangle": "삼각형",
    "diamond": "마름모",
    "star": "별",
    "heart": "하트",
    "cross": "십자가",
    "ring": "고리",
    "moon": "초승달",
    "hexagon": "육각형",
}
"""English → Korean."""


@dataclass(frozen=True)
class Scene:
    shape: str
    colour: str
    ground: str

    @property
    def captions(self) -> tuple[str, ...]:
        """All prompts for the scene: four in English, three in Korean."""
        shape, colour, ground = self.shape_and_color_words(korean=True)
        return (
            f"{with_article(self.colour)} {self.shape} on {with_article(self.ground)} background",
            f"{with_article(self.colour)} {self.shape} on {self.ground}",
            f"{self.colour} {self.shape} on {self.ground}",
            f"{self.colour} {self.shape}, {self.ground} background",
            f"{ground} 배경에 {colour} {shape}",
            f"{ground} 배경 위의 {colour} {shape}",
            f"{colour} {shape}, {ground} 배경",
        )

    def shape_and_color_words(self, *, korean: bool) -> tuple[str, str, str]:
        """The shape, its colour and the ground, as captions and slogans name them."""
        if korean:
            return SHAPES[self.shape], COLOURS[self.colour][0], COLOURS[self.ground][0]
        return self.shape, self.colour, self.ground


def with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def random_scene(rng: Random) -> Scene:
    colour, ground = rng.sample(list(COLOURS), 2)
    return Scene(rng.choice(list(SHAPES)), colour, ground)


def all_scenes() -> list[Scene]:
    return [Scene(shape, colour, ground) for shape in SHAPES for colour in COLOURS for ground in COLOURS if colour != ground]
