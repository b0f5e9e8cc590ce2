"""A row of `overlay_layouts`, read: where the text stands, in which colour and size, and where the rendered picture lies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contracts.verdict import Region

LARGE_TEXT_PIXELS = 24
"""From this font size on WCAG asks for less contrast."""


@dataclass(frozen=True)
class OverlayLayout:
    region: Region | None = None
    text_color: str | None = None
    large_text: bool = False
    render_url: str | None = None


def parse_layout(row: Mapping[str, Any] | None) -> OverlayLayout | None:
    """None stays None. What the layout does not say is absent."""
    if row is None:
        return None
    said = row["layout"]
    said = json.loads(said) if isinstance(said, str) else said or {}
    render = said.get("render") or {}
    size = said.get("font_size")
    return OverlayLayout(
        region=parse_region(row),
        text_color=said.get("text_color"),
        large_text=isinstance(size, int | float) and size >= LARGE_TEXT_PIXELS,
        render_url=render.get("url"),
    )


def parse_region(row: Mapping[str, Any]) -> Region | None:
    shares = [row[name] for name in ("x_ratio", "y_ratio", "width_ratio", "height_ratio")]
    if any(share is None for share in shares) or not (shares[2] > 0 and shares[3] > 0):
        return None
    x, y, width, height = (min(1.0, max(0.0, float(share))) for share in shares)
    return Region(x=x, y=y, width=width, height=height)
