"""The demo's description of an advertisement."""

from ops.commands.demo_output import format_ad

AD = {
    "text": "One red heart.",
    "is_valid": True,
    "relevance_score": 0.9,
    "occlusion": False,
    "contrast_ok": True,
    "cta_present": False,
    "contrast_ratio": 8.04,
}


def test_every_verdict_is_described() -> None:
    assert format_ad(AD) == (
        "“One red heart.”: the picture was accepted, it fits the copy, the text covers nothing important, it is legible, "
        "it has no call to action, contrast 8.0"
    )


def test_rejected_ad_description_ends_with_rejection() -> None:
    assert format_ad({"text": "One red heart.", "is_valid": False}) == "“One red heart.”: no picture was accepted"


def test_verdict_of_toy_is_labelled() -> None:
    text = format_ad({"text": "One red heart.", "is_valid": True, "toy_critic": "tiny-critic"})
    assert text.endswith("the picture was accepted (tiny-critic judged, a toy: it accepts every picture with a shape)")
