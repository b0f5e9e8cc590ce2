"""Contrast as WCAG 2 defines it: (L1 + 0.05) / (L2 + 0.05) of relative luminances. Colours are (red, green, blue), 0 to 255."""

from dataclasses import dataclass

from PIL import Image

Color = tuple[int, int, int]
SAMPLE_SIDE = 96
"""Pixels of the sample's longer side. Taken without blending, so that no colour appears that is not in the picture."""
SAME_COLOR_DISTANCE = 60
"""Distance (city block) up to which a pixel counts as the text's own colour or its smoothed edge."""
MIN_CONTRAST = 4.5
MIN_CONTRAST_LARGE_TEXT = 3.0


@dataclass(frozen=True)
class Contrast:
    ratio: float
    text: Color
    background: Color


def luminance(color: Color) -> float:
    """Relative luminance, 0 for black to 1 for white."""
    red, green, blue = (_linearize(channel / 255) for channel in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linearize(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def contrast_ratio(one: Color, other: Color) -> float:
    """1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def measure_contrast(picture: Image.Image, text: Color | None = None) -> Contrast | None:
    """Contrast of the text in a picture of its region against the background it stands on.

    The text's colour is given, or it is the rarer of the two groups into which luminance falls apart. The background is the colour
    that leaves a tenth of the background's pixels with less contrast. None when everything has one colour.
    """
    counts = _count_colors(picture)
    text = text or _minority_color(counts)
    if text is None:
        return None
    behind = [(count, color) for count, color in counts if sum(abs(a - b) for a, b in zip(color, text, strict=True)) > SAME_COLOR_DISTANCE]
    if not behind:
        return Contrast(1.0, text, text)
    worst = _worst_tenth([(contrast_ratio(color, text), count, color) for count, color in behind])
    return Contrast(round(contrast_ratio(worst, text), 2), text, worst)


def _count_colors(picture: Image.Image) -> list[tuple[int, Color]]:
    sample = picture.convert("RGB")
    scale = SAMPLE_SIDE / max(sample.size)
    if scale < 1:
        sample = sample.resize((max(1, round(sample.width * scale)), max(1, round(sample.height * scale))), Image.Resampling.NEAREST)
    counted = sample.getcolors(sample.width * sample.height) or []
    return [(count, (color[0], color[1], color[2])) for count, color in counted if isinstance(color, tuple)]


def _worst_tenth(rated_colors: list[tuple[float, int, Color]]) -> Color:
    rated_colors.sort()
    left = sum(count for _, count, _ in rated_colors) / 10
    for _, count, color in rated_colors:
        left -= count
        if left <= 0:
            return color
    return rated_colors[-1][2]


def _minority_color(counts: list[tuple[int, Color]]) -> Color | None:
    """The commonest colour of the smaller group, after Otsu's split of luminance in 64 classes."""
    classes = [0] * 64
    for count, color in counts:
        classes[_luminance_class(color)] += count
    split = otsu_threshold(classes)
    if split is None:
        return None
    groups = [[entry for entry in counts if (_luminance_class(entry[1]) <= split) is dark] for dark in (True, False)]
    return max(min(groups, key=lambda group: sum(count for count, _ in group)))[1]


def _luminance_class(color: Color) -> int:
    return min(63, int(luminance(color) ** 0.5 * 64))


def otsu_threshold(classes: list[int]) -> int | None:
    """The last class of the darker group, so that the groups differ most; None when there is but one class."""
    total, everything = sum(classes), sum(number * count for number, count in enumerate(classes))
    best, found, weight, below = 0.0, None, 0, 0
    for number, count in enumerate(classes[:-1]):
        weight += count
        below += number * count
        if 0 < weight < total:
            spread = weight * (total - weight) * (below / weight - (everything - below) / (total - weight)) ** 2
            if spread > best:
                best, found = spread, number
    return found
