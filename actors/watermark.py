"""Watermark: draws the artist's signature on every picture of an order.

Reads `images`, `signature`, `artist` and `metadata`; returns the signed pictures as new claims (PNG, RGB, of the same size).
Without a signature only the metadata is written. A signature picture that is named but missing is an error.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import structlog
from anyio import CapacityLimiter, to_thread
from PIL import Image

from actors.imaging.fonts import load_fonts, normalize_text, split_into_runs
from actors.imaging.image_decoding import IMAGE_TOO_LARGE, decode_image, flatten_on_white, to_rgba
from actors.imaging.png_metadata import encode_png, merge_text_chunks
from actors.imaging.signature import render_image_mark, render_text_mark, sign
from actors.settings import WatermarkSettings
from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.watermark import Signature, Watermark, WatermarkDone
from contracts.wire import Step

MarkRenderer = Callable[[tuple[int, int]], Image.Image]
"""Renders the signature for a picture of the given width and height in pixels."""

log = structlog.get_logger()


@asynccontextmanager
async def open_watermark(resources: Resources) -> AsyncIterator[Handler]:
    settings = WatermarkSettings()
    await to_thread.run_sync(load_fonts, settings.fonts)
    yield partial(watermark, claims=resources.claims, settings=settings, threads=CapacityLimiter(settings.threads))


ACTOR = Actor(step=Step.WATERMARK, command=Watermark, result=WatermarkDone, open=open_watermark, timeout_seconds=120, prefetch=4)


async def watermark(
    command: Watermark, context: Context, *, claims: ClaimStore, settings: WatermarkSettings, threads: CapacityLimiter
) -> WatermarkDone:
    mark = await load_mark(command.signature, claims, settings)
    authoritative = {"artist": command.artist or normalize_text(command.signature.text or ""), "job": context.job_id}
    signed = []
    for image in command.images:
        if image.size > settings.max_bytes:
            raise PermanentError(
                IMAGE_TOO_LARGE, f"{image.uri} has {image.size} bytes, more than WATERMARK_MAX_BYTES, {settings.max_bytes}."
            )
        render = partial(render_signed_png, await claims.read(image), mark, command, authoritative, settings.max_pixels)
        png, (width, height) = await to_thread.run_sync(render, limiter=threads)
        signed.append(await claims.write(png, media_type="image/png", width=width, height=height))
    return WatermarkDone(images=signed)


async def load_mark(signature: Signature, claims: ClaimStore, settings: WatermarkSettings) -> MarkRenderer | None:
    """A renderer of the signature; None when there is no signature."""
    if signature.image_uri:
        data = await fetch_signature(signature.image_uri, claims, settings)
        if data is not None:
            picture = await to_thread.run_sync(lambda: to_rgba(decode_image(data, settings.max_pixels, "The signature picture").pixels))
            return lambda size: render_image_mark(picture, size, signature.size)
    text = normalize_text(signature.text or "")
    if not text:
        return None
    runs = split_into_runs(text, load_fonts(settings.fonts))
    return lambda size: render_text_mark(runs, size, signature.size)


async def fetch_signature(uri: str, claims: ClaimStore, settings: WatermarkSettings) -> bytes | None:
    """None when it is missing and not required. Raises PermanentError("signature-missing" · "asset-too-large" · "asset-refused")."""
    try:
        return await claims.fetch(uri, max_bytes=settings.signature_max_bytes)
    except PermanentError as error:
        if error.code != "asset-missing":
            raise
        if settings.signature_required:
            raise PermanentError("signature-missing", f"{error} WATERMARK_SIGNATURE_REQUIRED=false leaves it out.") from error
        log.warning("signature.skipped", reason=str(error))
        return None


def render_signed_png(
    data: bytes, mark: MarkRenderer | None, command: Watermark, authoritative: Mapping[str, str | None], max_pixels: int
) -> tuple[bytes, tuple[int, int]]:
    """The signed PNG and its width and height. Raises PermanentError("image-unreadable" · "image-too-large")."""
    source = decode_image(data, max_pixels)
    picture = flatten_on_white(source.pixels)
    if mark:
        picture = sign(picture, mark(picture.size), command.signature)
    return encode_png(picture.convert("RGB"), merge_text_chunks(source.text_chunks, command.metadata, authoritative)), picture.size
