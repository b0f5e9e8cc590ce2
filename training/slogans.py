"""Slogans about a scene, in English and in Korean: the training data of tiny-writer, and the texts on tiny-critic's posters."""

from itertools import product

from training.scenes import COLOURS, SHAPES, Scene, with_article

ENGLISH_TEMPLATES = (
    "Meet {a_shape} on {ground}. {call}",
    "One {shape}, all {ground} around. {call}",
    "Look up: {a_shape} on {ground}. {call}",
    "Say it with {a_shape} on {ground}. {call}",
    "Your day needs {a_shape} on {ground}. {call}",
)
CALLS_TO_ACTION = ("Order today.", "Come and see.", "Only this week.", "Take it home.", "New in town.")
KOREAN_TEMPLATES = (
    "{ground} 바탕에 {shape}, {call}",
    "{shape}, {ground} 배경과 함께. {call}",
    "당신의 하루에 {shape} 하나, {ground} 배경 위에. {call}",
    "오늘은 {ground} 배경에 {shape}{object} 담아 보세요. {call}",
    "{ground} 배경 위에 뜬 {shape}. {call}",
)
KOREAN_CALLS_TO_ACTION = ("지금 만나 보세요.", "이번 주에만.", "오늘 주문하세요.", "새로 나왔어요.", "집으로 데려가세요.")


def slogans(scene: Scene, *, korean: bool) -> list[str]:
    """All slogans of a scene."""
    return korean_slogans(scene) if korean else english_slogans(scene)


def english_slogans(scene: Scene) -> list[str]:
    words = {"a_shape": f"{with_article(scene.colour)} {scene.shape}", "shape": f"{scene.colour} {scene.shape}", "ground": scene.ground}
    return [line.format(call=call, **words) for line, call in product(ENGLISH_TEMPLATES, CALLS_TO_ACTION)]


def korean_slogans(scene: Scene) -> list[str]:
    shape, ground = SHAPES[scene.shape], COLOURS[scene.ground][0]
    words = {"shape": f"{COLOURS[scene.colour][0]} {shape}", "ground": ground, "object": "을" if ends_in_consonant(shape) else "를"}
    return [line.format(call=call, **words) for line, call in product(KOREAN_TEMPLATES, KOREAN_CALLS_TO_ACTION)]


def ends_in_consonant(word: str) -> bool:
    """Whether a Korean word does: Unicode orders syllables by their last consonant, 28 of them with the one for none."""
    return (ord(word[-1]) - ord("가")) % 28 != 0
