"""The labels and verdicts of posters."""

from random import Random

import numpy as np

from training.posters import CLASS_COUNTS, class_labels, draw_poster, text_patch_labels


def test_posters_are_deterministic_by_seed() -> None:
    first, second = (draw_poster(Random(4)) for _ in range(2))
    assert np.array_equal(np.asarray(first.pixels), np.asarray(second.pixels))
    assert first.expected_verdict == second.expected_verdict


def test_every_verdict_field_takes_both_values() -> None:
    rng = Random(2)
    posters = [draw_poster(rng) for _ in range(120)]
    for name in ("on_brief", "occlusion", "contrast_ok", "cta_present"):
        count = sum(getattr(poster.expected_verdict, name) for poster in posters)
        assert 12 < count < 118, name
    assert all(0 <= number < classes for poster in posters for number, classes in zip(class_labels(poster), CLASS_COUNTS, strict=True))


def test_poster_without_text_has_no_text_faults() -> None:
    rng = Random(8)
    for poster in [draw_poster(rng, without_text=True) for _ in range(12)]:
        assert (poster.occlusion, poster.contrast_ok, poster.cta_present) == (False, True, False)
        assert set(text_patch_labels(poster, 8)) == {0}


def test_text_patch_labels_follow_text_box() -> None:
    """1 or 2 in the parts that the text box covers, 0 elsewhere; over the shape the text is in the middle."""
    rng = Random(9)
    for poster in [draw_poster(rng) for _ in range(40)]:
        parts = np.array(text_patch_labels(poster, 8)).reshape(8, 8)
        assert set(parts.flat) == {0, 1 if poster.contrast_ok else 2}
        rows = np.flatnonzero(parts.any(axis=1))
        assert bool(rows.min() > 0 and rows.max() < 7) is poster.occlusion, parts
