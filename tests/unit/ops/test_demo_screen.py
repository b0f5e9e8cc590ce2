"""How the demo tells of an advertisement."""

from ops.demo_screen import advertised

DONE = {
    "text": "One red heart.",
    "is_valid": True,
    "relevance_score": 0.9,
    "occlusion": False,
    "contrast_ok": True,
    "cta_present": False,
    "contrast_ratio": 8.04,
}


def test_each_verdict_is_said_in_words() -> None:
    said = advertised(DONE)
    assert said == (
        "“One red heart.”: the picture was let through, it fits the copy, nothing that matters is covered, it can be read, "
        "it calls to nothing, contrast 8.0"
    )


def test_a_refused_one_ends_with_the_refusal() -> None:
    assert advertised({"text": "One red heart.", "is_valid": False}) == "“One red heart.”: no picture was let through"
