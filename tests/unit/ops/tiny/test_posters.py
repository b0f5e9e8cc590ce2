"""What a poster says of itself is so."""

from random import Random

import numpy as np

from ops.tiny.posters import CLASSES, draw_poster, lettering, numbers


def test_the_same_dice_draw_the_same_posters() -> None:
    one, other = (draw_poster(Random(4)) for _ in range(2))
    assert np.array_equal(np.asarray(one.pixels), np.asarray(other.pixels))
    assert one.opinion == other.opinion


def test_every_answer_comes_both_ways() -> None:
    dice = Random(2)
    posters = [draw_poster(dice) for _ in range(120)]
    for name in ("on_brief", "occlusion", "contrast_ok", "cta_present"):
        yes = sum(getattr(poster.opinion, name) for poster in posters)
        assert 12 < yes < 118, name
    assert all(0 <= number < classes for poster in posters for number, classes in zip(numbers(poster), CLASSES, strict=True))


def test_a_bare_picture_has_nothing_that_could_be_wrong_with_its_text() -> None:
    dice = Random(8)
    for poster in [draw_poster(dice, bare=True) for _ in range(12)]:
        assert (poster.occlusion, poster.contrast_ok, poster.cta_present) == (False, True, False)
        assert set(lettering(poster, 8)) == {0}


def test_where_the_text_stands_is_told_part_by_part() -> None:
    """Readable or not, in the parts that its box covers and nowhere else; over the shape, in the middle."""
    dice = Random(9)
    for poster in [draw_poster(dice) for _ in range(40)]:
        parts = np.array(lettering(poster, 8)).reshape(8, 8)
        assert set(parts.flat) == {0, 1 if poster.contrast_ok else 2}
        rows = np.flatnonzero(parts.any(axis=1))
        assert bool(rows.min() > 0 and rows.max() < 7) is poster.occlusion, parts
