"""Overlay: an advertisement's copy laid over its picture, where there is room for it and where it can be read.

Reads the first of `images`, `text` and what the validate step recommends; returns the lettered picture as a claim, the bare one, and the
layout as the source system's `overlay_layouts` holds it. With `job_variants_id` and a database the row is written too.
"""

import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import product
from typing import Any
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from asyncpg import Connection, Pool

from actors.imaging.contrast import Color
from actors.imaging.fonts import load_fonts, normalize_text
from actors.imaging.image_decoding import decode_image, flatten_on_white
from actors.imaging.text_layout import BLACK, WHITE, Placement, TextBlock, candidate_placements, draw_text, fit_text, with_backdrop
from actors.settings import OverlaySettings
from actors.vision.variant_repository import SCHEMA
from bus.actor import Actor, Context, Handler, Resources, Transactional
from bus.errors import PermanentError
from bus.ids import derived_id
from bus.sql import load_queries
from bus.storage.claim_store import ClaimStore
from contracts.overlay import Overlay, OverlayDone
from contracts.verdict import Region
from contracts.wire import Step

SQL = load_queries(__file__, "overlay.sql")
X_ALIGN_PREFERENCE, Y_ALIGN_PREFERENCE = ("center", "left", "right"), ("top", "bottom", "middle")
"""Places in the order in which they are liked, where nothing else decides."""


@asynccontextmanager
async def open_overlay(resources: Resources) -> AsyncIterator[Handler]:
    settings = OverlaySettings()
    await to_thread.run_sync(load_fonts, settings.fonts)
    yield partial(
        overlay, claims=resources.claims, database=resources.database, settings=settings, threads=CapacityLimiter(settings.threads)
    )


ACTOR = Actor(
    step=Step.OVERLAY,
    command=Overlay,
    result=OverlayDone,
    open=open_overlay,
    timeout_seconds=120,
    prefetch=4,
    schema=SCHEMA,
    description="Lays an advertisement's copy over its picture.",
)


async def overlay(
    command: Overlay, context: Context, *, claims: ClaimStore, database: Pool | None, settings: OverlaySettings, threads: CapacityLimiter
) -> OverlayDone | Transactional:
    """Raises PermanentError("invalid-uuid" · "text-empty" · "glyph-missing" · "image-unreadable" · "image-too-large")."""
    started, bare = time.perf_counter(), command.images[0]
    ids = [parse_uuid(command.proposal_id), parse_uuid(command.job_variants_id)]
    work = partial(compose, await claims.read(bare), command, settings)
    png, size, place, block = await to_thread.run_sync(work, limiter=threads)
    claim = await claims.write(png, media_type="image/png", width=size[0], height=size[1])
    overlay_id = derived_id(context.message_id, "overlay")
    render = {"asset_id": derived_id(overlay_id, "render"), "url": await claims.url(claim), "width": size[0], "height": size[1]}
    done = OverlayDone(
        images=[claim],
        bare_image=bare,
        overlay_id=overlay_id,
        text_region=to_region(place, size),
        text_color=format_color(place.color),
        large_text=block.is_large,
        contrast_ratio=round(place.contrast, 2),
        contrast_required=block.required_contrast,
        layout=build_layout(command, place, block, settings) | {"render": render},
    )
    if not command.job_variants_id or database is None:
        return done
    latency_ms = (time.perf_counter() - started) * 1000
    return Transactional(done, partial(insert_layout, done=done, ids=ids, margin=f"{command.margin}px", latency_ms=latency_ms))


async def insert_layout(connection: Connection, *, done: OverlayDone, ids: list[str | None], margin: str, latency_ms: float) -> None:
    """The layout as a row of the source system's table."""
    region = done.text_region
    shares = [round(share, 4) for share in (region.x, region.y, region.width, region.height)]
    await connection.execute(SQL["keep_layout"], done.overlay_id, *ids, done.layout, *shares, margin, latency_ms)


def compose(data: bytes, command: Overlay, settings: OverlaySettings) -> tuple[bytes, tuple[int, int], Placement, TextBlock]:
    """The finished PNG, its size, and how the text stands on it."""
    picture = flatten_on_white(decode_image(data, settings.max_pixels).pixels).convert("RGB")
    faces = load_fonts(settings.fonts)
    text = "\n".join(line for line in (normalize_text(line) for line in command.text.splitlines()) if line)
    if not text:
        raise PermanentError("text-empty", "The text has no letter that could be drawn.")
    font = command.font_recommendation
    block = fit_text(text, faces, picture.size, font.font_size_category if font else "medium")
    aligns = [
        (x, y)
        for y, x in product(
            [command.y_align] if command.y_align else Y_ALIGN_PREFERENCE, [command.x_align] if command.x_align else X_ALIGN_PREFERENCE
        )
    ]
    found = candidate_placements(picture, block, aligns, command.margin, candidate_colors(command))
    best = min(found, key=lambda place: place.cost + 4 * protected_share(place, picture.size, command.protected_region))
    place = with_backdrop(picture, best, block, parse_color(command.overlay_color) if command.overlay_color else None)
    with io.BytesIO() as file:
        draw_text(picture, place, block, faces).save(file, "PNG")
        return file.getvalue(), picture.size, place, block


def candidate_colors(command: Overlay) -> list[Color]:
    """A colour that is told is the only one; a recommended one is the first of three."""
    if command.text_color:
        return [parse_color(command.text_color)]
    font = command.font_recommendation
    try:
        return [*([parse_color(font.font_color_hex)] if font else []), WHITE, BLACK]
    except ValueError:  # A model's recommendation need not be a colour.
        return [WHITE, BLACK]


def protected_share(placement: Placement, size: tuple[int, int], protected: Region | None) -> float:
    """The share of the place that lies on what must stay free."""
    if protected is None:
        return 0.0
    region = to_region(placement, size)
    across = min(region.x + region.width, protected.x + protected.width) - max(region.x, protected.x)
    down = min(region.y + region.height, protected.y + protected.height) - max(region.y, protected.y)
    return max(0.0, across) * max(0.0, down) / (region.width * region.height)


def to_region(placement: Placement, size: tuple[int, int]) -> Region:
    left, top, right, bottom = placement.box
    return Region(x=left / size[0], y=top / size[1], width=(right - left) / size[0], height=(bottom - top) / size[1])


def build_layout(command: Overlay, placement: Placement, block: TextBlock, settings: OverlaySettings) -> dict[str, Any]:
    """The fields of the source system's layout, but for `render`."""
    font = command.font_recommendation
    face = next((face for face in load_fonts(settings.fonts) if face.supports(command.text)), load_fonts(settings.fonts)[0])
    plate = f"{format_color(placement.backdrop[0])}{round(placement.backdrop[1] * 255):02x}" if placement.backdrop else None
    return {
        "text": command.text,
        "wrapped_text": "\n".join(block.lines),
        "x_align": placement.x_align,
        "y_align": placement.y_align,
        "text_size": font.font_size_category if font else "medium",
        "font_name": face.path.stem,
        "font_size": block.font_size,
        "font_path": face.path.name,
        "overlay_color": plate,
        "text_color": f"{format_color(placement.color)}ff",
        "margin": f"{command.margin}px",
    }


def parse_color(text: str) -> Color:
    """RRGGBB, with or without `#` and a share of opacity, which is let be: a text that shines through has no one contrast."""
    return (int(text.lstrip("#")[0:2], 16), int(text.lstrip("#")[2:4], 16), int(text.lstrip("#")[4:6], 16))


def format_color(color: Color) -> str:
    return "".join(f"{channel:02x}" for channel in color)


def parse_uuid(value: str | None) -> str | None:
    try:
        return str(UUID(value)) if value else None
    except ValueError:
        raise PermanentError("invalid-uuid", f"Invalid UUID format: {value}") from None
