"""Parses a row of `overlay_layouts`: the text, its region, colour and size, and the address of the rendered picture."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.imaging.contrast import LARGE_TEXT_PIXELS
from contracts.verdict import Region


@dataclass(frozen=True)
class OverlayLayout:
    """`region`: shares of the picture. `text_color`: `rrggbb` with an optional opacity. `large_text`: as WCAG defines it."""

    region: Region | None = None
    text_color: str | None = None
    large_text: bool = False
    render_url: str | None = None
    text: str | None = None


def parse_layout(row: Mapping[str, Any] | None) -> OverlayLayout | None:
    """None for None. Fields that the layout lacks keep their defaults."""
    if row is None:
        return None
    layout = row["layout"]
    layout = json.loads(layout) if isinstance(layout, str) else layout or {}
    render = layout.get("render") or {}
    size, text = layout.get("font_size"), layout.get("text")
    return OverlayLayout(
        region=parse_region(row),
        text_color=layout.get("text_color"),
        large_text=isinstance(size, int | float) and size >= LARGE_TEXT_PIXELS,
        render_url=render.get("url"),
        text=text if isinstance(text, str) else None,
    )


def parse_region(row: Mapping[str, Any]) -> Region | None:
    shares = [row[name] for name in ("x_ratio", "y_ratio", "width_ratio", "height_ratio")]
    if any(share is None for share in shares) or not (shares[2] > 0 and shares[3] > 0):
        return None
    x, y, width, height = (min(1.0, max(0.0, float(share))) for share in shares)
    return Region(x=x, y=y, width=width, height=height)
