"""What can be measured on a finished advertisement, and where it contradicts the model's opinion."""

from PIL import Image, ImageChops

from actors.imaging import contrast
from contracts.verdict import AdVerdictSchema, Evidence, Region

CHANGE_THRESHOLD = 24
"""Difference of a channel from which on a pixel counts as covered: above what JPEG does to it."""
MAX_COVERED_SHARE = 0.05
"""Of the protected region. The source system's planner tolerates as much."""


def measure_evidence(
    picture: Image.Image,
    *,
    text_region: Region | None,
    text_color: str | None,
    large_text: bool,
    protected: Region | None,
    bare: Image.Image | None,
) -> Evidence:
    """Everything that the given regions allow to measure."""
    share = covered_share(picture, bare, protected, text_region) if protected else None
    told = {"covered_share": share, "covered_by": "pixels" if bare else "geometry"} if share is not None else {}
    if text_region is None:
        return Evidence.model_validate(told)
    found = contrast.measure_contrast(picture.crop(to_pixel_box(text_region, picture.size)), parse_rgb(text_color))
    if found:
        told |= {
            "contrast_ratio": found.ratio,
            "contrast_required": contrast.MIN_CONTRAST_LARGE_TEXT if large_text else contrast.MIN_CONTRAST,
            "text_color": "{:02x}{:02x}{:02x}".format(*found.text),
            "background_color": "{:02x}{:02x}{:02x}".format(*found.background),
        }
    return Evidence.model_validate(told)


def covered_share(picture: Image.Image, bare: Image.Image | None, protected: Region, overlay: Region | None) -> float | None:
    """Share of the protected region whose pixels differ from the bare picture; without one, the share under the overlay's box."""
    if bare:
        area = to_pixel_box(protected, picture.size)
        before = bare.convert("RGB").resize(picture.size).crop(area)
        return _changed_share(picture.convert("RGB").crop(area), before)
    return round(overlap_area(protected, overlay) / (protected.width * protected.height), 4) if overlay else None


def _changed_share(after: Image.Image, before: Image.Image) -> float:
    red, green, blue = ImageChops.difference(after, before).split()
    most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    changed = sum(most.histogram()[CHANGE_THRESHOLD:])
    return round(changed / (after.width * after.height), 4)


def overlap_area(one: Region, other: Region) -> float:
    """The common area, as a share of the picture."""
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    return max(0.0, across) * max(0.0, down)


def find_disagreements(opinion: AdVerdictSchema, evidence: Evidence) -> list[str]:
    """Where the measurement says the opposite of the model, in words."""
    found = []
    if evidence.contrast_ratio is not None and evidence.contrast_required is not None:
        enough = evidence.contrast_ratio >= evidence.contrast_required
        if enough != opinion.contrast_ok:
            said, word = ("enough", "below") if opinion.contrast_ok else ("too low", "above")
            measured, required = evidence.contrast_ratio, evidence.contrast_required
            found.append(f"The model calls the contrast {said}, but {measured:g}:1 was measured, {word} the {required:g}:1 of WCAG AA.")
    if evidence.covered_share is not None and (evidence.covered_share > MAX_COVERED_SHARE) != opinion.occlusion:
        said = "something covered" if opinion.occlusion else "nothing covered"
        found.append(f"The model sees {said}, but {evidence.covered_share:.1%} of the protected region was measured as covered.")
    return found


def to_pixel_box(region: Region, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A region in pixels: inside the picture and never empty."""
    width, height = size
    left, top = min(int(region.x * width), width - 1), min(int(region.y * height), height - 1)
    right = max(left + 1, min(width, round((region.x + region.width) * width)))
    return left, top, right, max(top + 1, min(height, round((region.y + region.height) * height)))


def parse_rgb(color: str | None) -> contrast.Color | None:
    """`rrggbb`, with or without `#` and a trailing opacity, as the source system writes colours."""
    if not color:
        return None
    digits = color.lstrip("#")[:6]
    try:
        return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)
    except ValueError:
        return None
