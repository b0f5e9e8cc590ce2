"""Contrast as WCAG 2 defines it: (L1 + 0.05) / (L2 + 0.05) of relative luminances. Colours are (red, green, blue), 0 to 255."""

from dataclasses import dataclass

from PIL import Image

Color = tuple[int, int, int]
SAMPLE_SIDE = 96
"""Pixels of the sample's longer side. Sampled without blending, so that every colour of the sample is in the picture."""
SAME_COLOR_DISTANCE = 60
"""Distance (city block) up to which a pixel counts as the text's own colour or its antialiased edge."""
MIN_CONTRAST = 4.5
MIN_CONTRAST_LARGE_TEXT = 3.0
LARGE_TEXT_PIXELS = 24
"""Font size from which WCAG AA requires only MIN_CONTRAST_LARGE_TEXT."""


@dataclass(frozen=True)
class Contrast:
    """A WCAG contrast ratio, 1 to 21, and the two colours it was computed from."""

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


def parse_color(text: str) -> Color:
    """`rrggbb`, with or without `#` and a trailing opacity, which is ignored. Raises ValueError for anything else."""
    digits = text.lstrip("#")
    return int(digits[0:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)


def format_color(color: Color) -> str:
    """`rrggbb`."""
    return "".join(f"{channel:02x}" for channel in color)


def measure_contrast(picture: Image.Image, text: Color | None = None) -> Contrast | None:
    """Contrast between the text and its background in a picture of the text's region.

    Without a given text colour it is the rarer of the two luminance groups. The background colour is the one at the tenth percentile of
    contrast. None when the picture has only one colour.
    """
    counts = _count_colors(picture)
    text = text or _minority_color(counts)
    if text is None:
        return None
    background = [
        (count, color) for count, color in counts if sum(abs(a - b) for a, b in zip(color, text, strict=True)) > SAME_COLOR_DISTANCE
    ]
    if not background:
        return Contrast(1.0, text, text)
    ratio, color = tenth_percentile([(contrast_ratio(color, text), count, color) for count, color in background])
    return Contrast(round(ratio, 2), text, color)


def _count_colors(picture: Image.Image) -> list[tuple[int, Color]]:
    sample = picture.convert("RGB")
    scale = SAMPLE_SIDE / max(sample.size)
    if scale < 1:
        sample = sample.resize((max(1, round(sample.width * scale)), max(1, round(sample.height * scale))), Image.Resampling.NEAREST)
    return count_pixels(sample)


def count_pixels(picture: Image.Image) -> list[tuple[int, Color]]:
    """The number of pixels of each colour of an RGB picture."""
    counts = picture.getcolors(picture.width * picture.height) or []
    return [(count, (color[0], color[1], color[2])) for count, color in counts if isinstance(color, tuple)]


def tenth_percentile(rated_colors: list[tuple[float, int, Color]]) -> tuple[float, Color]:
    """From (contrast, pixels, colour): the contrast that nine tenths of the pixels reach or exceed, and its colour."""
    rated_colors = sorted(rated_colors)
    remaining = sum(count for _, count, _ in rated_colors) / 10
    for ratio, count, color in rated_colors:
        remaining -= count
        if remaining <= 0:
            return ratio, color
    return rated_colors[-1][0], rated_colors[-1][2]


def _minority_color(counts: list[tuple[int, Color]]) -> Color | None:
    """The most frequent colour of the smaller of two groups; Otsu's method splits luminance in 64 classes. None with one class only."""
    classes = [0] * 64
    for count, color in counts:
        classes[_luminance_class(color)] += count
    threshold = otsu_threshold(classes)
    if threshold is None:
        return None
    groups = [[entry for entry in counts if (_luminance_class(entry[1]) <= threshold) is dark] for dark in (True, False)]
    return max(min(groups, key=lambda group: sum(count for count, _ in group)))[1]


def _luminance_class(color: Color) -> int:
    return min(63, int(luminance(color) ** 0.5 * 64))


def otsu_threshold(classes: list[int]) -> int | None:
    """The last class of the darker group that maximises the variance between the groups; None when only one class is used."""
    total, total_sum = sum(classes), sum(number * count for number, count in enumerate(classes))
    best_variance, threshold, weight, weighted_sum = 0.0, None, 0, 0
    for number, count in enumerate(classes[:-1]):
        weight += count
        weighted_sum += number * count
        if 0 < weight < total:
            mean_difference = weighted_sum / weight - (total_sum - weighted_sum) / (total - weight)
            variance = weight * (total - weight) * mean_difference**2
            if variance > best_variance:
                best_variance, threshold = variance, number
    return threshold
