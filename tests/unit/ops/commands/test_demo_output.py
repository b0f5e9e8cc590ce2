"""How the demo tells of an advertisement."""

from ops.commands.demo_output import format_ad

DONE = {
    "text": "One red heart.",
    "is_valid": True,
    "relevance_score": 0.9,
    "occlusion": False,
    "contrast_ok": True,
    "cta_present": False,
    "contrast_ratio": 8.04,
}


def test_every_verdict_is_described() -> None:
    said = format_ad(DONE)
    assert said == (
        "“One red heart.”: the picture was let through, it fits the copy, nothing that matters is covered, it can be read, "
        "it calls to nothing, contrast 8.0"
    )


def test_rejected_ad_description_ends_with_rejection() -> None:
    assert format_ad({"text": "One red heart.", "is_valid": False}) == "“One red heart.”: no picture was let through"
