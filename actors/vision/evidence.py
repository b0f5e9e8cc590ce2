"""Measurements on a finished advertisement: contrast of the text and coverage of the protected region.

Also the issues that follow from all measurements: contradictions to the model, and text that cannot be read.
"""

from PIL import Image, ImageChops

from actors.imaging import contrast
from actors.vision.ocr_evidence import MAX_CHARACTER_ERRORS, MIN_TEXT_PIXELS, MIN_TEXT_SHARE
from contracts.verdict import AdVerdictSchema, Evidence, Region

CHANGE_THRESHOLD = 24
"""Smallest difference of a channel for a pixel to count as covered; JPEG artefacts stay below it."""
MAX_COVERED_SHARE = 0.05
"""Of the protected region; the tolerance of the source system's planner."""


def measure_evidence(
    picture: Image.Image,
    *,
    text_region: Region | None,
    text_color: str | None,
    large_text: bool,
    protected: Region | None,
    bare: Image.Image | None,
) -> Evidence:
    """All measurements for which the regions are given."""
    share = covered_share(picture, bare, protected, text_region) if protected else None
    fields = {"covered_share": share, "covered_by": "pixels" if bare else "geometry"} if share is not None else {}
    if text_region is None:
        return Evidence.model_validate(fields)
    measured = contrast.measure_contrast(picture.crop(to_pixel_box(text_region, picture.size)), parse_rgb(text_color))
    if measured:
        fields |= {
            "contrast_ratio": measured.ratio,
            "contrast_required": contrast.MIN_CONTRAST_LARGE_TEXT if large_text else contrast.MIN_CONTRAST,
            "text_color": contrast.format_color(measured.text),
            "background_color": contrast.format_color(measured.background),
        }
    return Evidence.model_validate(fields)


def covered_share(picture: Image.Image, bare: Image.Image | None, protected: Region, overlay: Region | None) -> float | None:
    """The share of the protected region whose pixels differ from the bare picture; without a bare picture, the share under the overlay."""
    if bare:
        area = to_pixel_box(protected, picture.size)
        before = bare.convert("RGB").resize(picture.size).crop(area)
        return _changed_share(picture.convert("RGB").crop(area), before)
    return round(overlap_area(protected, overlay) / (protected.width * protected.height), 4) if overlay else None


def _changed_share(after: Image.Image, before: Image.Image) -> float:
    red, green, blue = ImageChops.difference(after, before).split()
    largest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    changed = sum(largest.histogram()[CHANGE_THRESHOLD:])
    return round(changed / (after.width * after.height), 4)


def overlap_area(one: Region, other: Region) -> float:
    """The area of the intersection, as a share of the picture."""
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    return max(0.0, width) * max(0.0, height)


def find_disagreements(opinion: AdVerdictSchema, evidence: Evidence) -> list[str]:
    """Sentences for the issues, one for each measurement that contradicts the model."""
    issues = []
    if evidence.contrast_ratio is not None and evidence.contrast_required is not None:
        enough = evidence.contrast_ratio >= evidence.contrast_required
        if enough != opinion.contrast_ok:
            claimed, relation = ("enough", "below") if opinion.contrast_ok else ("too low", "above")
            measured, required = evidence.contrast_ratio, evidence.contrast_required
            issues.append(
                f"The model calls the contrast {claimed}, but {measured:g}:1 was measured, {relation} the {required:g}:1 of WCAG AA."
            )
    if evidence.covered_share is not None and (evidence.covered_share > MAX_COVERED_SHARE) != opinion.occlusion:
        claimed = "something covered" if opinion.occlusion else "nothing covered"
        issues.append(f"The model sees {claimed}, but {evidence.covered_share:.1%} of the protected region was measured as covered.")
    return issues + find_text_issues(opinion, evidence)


def find_text_issues(opinion: AdVerdictSchema, evidence: Evidence) -> list[str]:
    """Sentences about the text that was read. That a call to action is missing counts only where the text was read well."""
    issues, rate, words = [], evidence.character_error_rate, evidence.calls_to_action
    if rate is not None and rate > MAX_CHARACTER_ERRORS:
        issues.append(f"The text is not readable: {rate:.0%} of the characters of the ad copy were read wrongly or not at all.")
    if evidence.text_too_small:
        height, share = evidence.text_height, evidence.text_height_share
        required = f"{MIN_TEXT_SHARE:.0%} and {MIN_TEXT_PIXELS:g} pixels are required"
        issues.append(f"The text is too small: {height:g} pixels, {share:.1%} of the picture's height; {required}.")
    if words and not opinion.cta_present:
        issues.append(f"The model sees no call to action, but “{words[0]}” was read in the picture.")
    if words == [] and opinion.cta_present and rate is not None and rate <= MAX_CHARACTER_ERRORS:
        issues.append("The model sees a call to action, but the text was read and has none of the words of OCR_CALLS_TO_ACTION.")
    return issues


def to_pixel_box(region: Region, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels, clipped to the picture and at least one pixel in size."""
    width, height = size
    left, top = min(int(region.x * width), width - 1), min(int(region.y * height), height - 1)
    right = max(left + 1, min(width, round((region.x + region.width) * width)))
    return left, top, right, max(top + 1, min(height, round((region.y + region.height) * height)))


def parse_rgb(color: str | None) -> contrast.Color | None:
    """None when `color` is missing or is not a colour."""
    try:
        return contrast.parse_color(color) if color else None
    except ValueError:
        return None
