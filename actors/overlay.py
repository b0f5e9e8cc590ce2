"""Overlay: draws an advertisement's text over its picture, at a position where it is readable.

Reads the first of `images`, `text` and the font that the validate step recommends; returns the picture with the text as a claim, the bare
one, and the layout in the form of the source system's `overlay_layouts`. With `job_variants_id` and a database it also inserts the row, for
a tenant only when the variant is its own. `proposal_id` is stored in that row and not looked up.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import product
from typing import Any
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from asyncpg import Connection, Pool

from actors.imaging.contrast import Color, format_color, parse_color
from actors.imaging.fonts import load_fonts, open_fonts, prepare_drawing
from actors.imaging.image_decoding import decode_image, flatten_on_white
from actors.imaging.png_metadata import encode_png, merge_text_chunks
from actors.imaging.text_layout import BLACK, WHITE, Placement, TextBlock, candidate_placements, draw_text, fit_text, with_backdrop
from actors.settings import OverlaySettings
from actors.vision.evidence import overlap_area
from actors.vision.variant_repository import SCHEMA, find_variant
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
"""Preferred positions first; the order decides between positions of equal cost."""


@asynccontextmanager
async def open_overlay(resources: Resources) -> AsyncIterator[Handler]:
    settings = OverlaySettings()
    await to_thread.run_sync(open_fonts, settings.fonts)
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
    description="Draws an advertisement's text over its picture.",
)


async def overlay(
    command: Overlay, context: Context, *, claims: ClaimStore, database: Pool | None, settings: OverlaySettings, threads: CapacityLimiter
) -> OverlayDone | Transactional:
    """Raises PermanentError.

    Its codes: "invalid-uuid", "variant-unknown", "text-empty", "glyph-missing", "image-unreadable", "image-too-large".
    """
    started, bare = time.perf_counter(), command.images[0]
    ids = [parse_uuid(command.proposal_id), parse_uuid(command.job_variants_id)]
    if ids[1] and database and context.tenant:
        await find_variant(database, ids[1], context.tenant)
    generated = await claims.is_generated(bare, tenant=context.tenant)
    render = partial(compose, await claims.read(bare, tenant=context.tenant), command, settings, generated=generated)
    png, size, placement, block, left_out = await to_thread.run_sync(render, limiter=threads)
    claim = await claims.write(png, tenant=context.tenant, media_type="image/png", width=size[0], height=size[1], generated=generated)
    overlay_id = derived_id(context.keyed_id, "overlay")
    url = await claims.url(claim, tenant=context.tenant, permanent=True)
    rendered = {"asset_id": derived_id(overlay_id, "render"), "url": url, "width": size[0], "height": size[1]}
    result = OverlayDone(
        images=[claim],
        bare_image=bare,
        overlay_id=overlay_id,
        text_region=to_region(placement, size),
        text_color=format_color(placement.color),
        large_text=block.is_large,
        contrast_ratio=round(placement.contrast, 2),
        contrast_required=block.required_contrast,
        layout=build_layout(command, placement, block, settings) | {"render": rendered},
        text_left_out=left_out,
    )
    if not command.job_variants_id or database is None:
        return result
    latency_ms = (time.perf_counter() - started) * 1000
    return Transactional(result, partial(insert_layout, result=result, ids=ids, margin=f"{command.margin}px", latency_ms=latency_ms))


async def insert_layout(connection: Connection, *, result: OverlayDone, ids: list[str | None], margin: str, latency_ms: float) -> None:
    """Insert the layout into the source system's table. `ids`: of the proposal and the variant."""
    region = result.text_region
    shares = [round(share, 4) for share in (region.x, region.y, region.width, region.height)]
    await connection.execute(SQL["insert_layout"], result.overlay_id, *ids, result.layout, *shares, margin, latency_ms)


def compose(
    data: bytes, command: Overlay, settings: OverlaySettings, *, generated: bool
) -> tuple[bytes, tuple[int, int], Placement, TextBlock, str]:
    """The PNG with the text and the text chunks of the picture, its size, the placement, the wrapped text and what of it was left out."""
    source = decode_image(data, settings.max_pixels)
    picture = flatten_on_white(source.pixels).convert("RGB")
    faces = load_fonts(settings.fonts)
    prepared = [prepare_drawing(line, faces) for line in command.text.splitlines()]
    text, left_out = "\n".join(line.text for line in prepared if line.text), "".join(line.left_out for line in prepared)
    if not text:
        raise PermanentError("text-empty", "The text has no character that is drawn: it is blank, or emoji alone.")
    font = command.font_recommendation
    block = fit_text(text, faces, picture.size, font.font_size_category if font else "medium")
    aligns = [
        (x, y)
        for y, x in product(
            [command.y_align] if command.y_align else Y_ALIGN_PREFERENCE, [command.x_align] if command.x_align else X_ALIGN_PREFERENCE
        )
    ]
    candidates = candidate_placements(picture, block, aligns, command.margin, candidate_colors(command))
    best = min(candidates, key=lambda candidate: candidate.cost + 4 * protected_share(candidate, picture.size, command.protected_region))
    placement = with_backdrop(picture, best, block, parse_color(command.overlay_color) if command.overlay_color else None)
    chunks = merge_text_chunks(source.text_chunks, {}, {}, generated=generated)
    return encode_png(draw_text(picture, placement, block, faces), chunks), picture.size, placement, block, left_out


def candidate_colors(command: Overlay) -> list[Color]:
    """The given text colour alone; else the recommended one, white and black."""
    if command.text_color:
        return [parse_color(command.text_color)]
    font = command.font_recommendation
    try:
        return [*([parse_color(font.font_color_hex)] if font else []), WHITE, BLACK]
    except ValueError:  # The model may recommend something that is not a colour.
        return [WHITE, BLACK]


def protected_share(placement: Placement, size: tuple[int, int], protected: Region | None) -> float:
    """The share of the placement that covers the protected region."""
    if protected is None:
        return 0.0
    region = to_region(placement, size)
    return overlap_area(region, protected) / (region.width * region.height)


def to_region(placement: Placement, size: tuple[int, int]) -> Region:
    left, top, right, bottom = placement.box
    return Region(x=left / size[0], y=top / size[1], width=(right - left) / size[0], height=(bottom - top) / size[1])


def build_layout(command: Overlay, placement: Placement, block: TextBlock, settings: OverlaySettings) -> dict[str, Any]:
    """The fields of the source system's layout, without `render`."""
    font = command.font_recommendation
    face = next((face for face in load_fonts(settings.fonts) if face.supports("".join(block.lines))), load_fonts(settings.fonts)[0])
    backdrop = f"{format_color(placement.backdrop[0])}{round(placement.backdrop[1] * 255):02x}" if placement.backdrop else None
    return {
        "text": command.text,
        "wrapped_text": "\n".join(block.lines),
        "x_align": placement.x_align,
        "y_align": placement.y_align,
        "text_size": font.font_size_category if font else "medium",
        "font_name": face.path.stem,
        "font_size": block.font_size,
        "font_path": face.path.name,
        "overlay_color": backdrop,
        "text_color": f"{format_color(placement.color)}ff",
        "margin": f"{command.margin}px",
    }


def parse_uuid(value: str | None) -> str | None:
    try:
        return str(UUID(value)) if value else None
    except ValueError:
        raise PermanentError("invalid-uuid", f"Invalid UUID format: {value}") from None
