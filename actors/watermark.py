"""Watermark: the artist's signature on every picture of an order.

Reads `images`, `signature`, `artist` and `metadata`; returns the signed pictures as new claims, PNG, RGB, of the same size.
Without a signature the pictures pass unsigned, their metadata written. A named signature picture that is not there is an error.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import structlog
from anyio import CapacityLimiter, to_thread
from PIL import Image

from actors.pictures.chunks import encode_png, merged
from actors.pictures.fonts import clean, load_faces, runs
from actors.pictures.reading import TOO_LARGE, on_white, read_picture, with_alpha
from actors.pictures.signing import picture_mark, sign, text_mark
from actors.settings import WatermarkSettings
from bus.actor import Actor, Context, Handler, Tools
from bus.claims import ClaimStore
from bus.errors import PermanentError
from contracts.watermark import Signature, Watermark, WatermarkDone
from contracts.wire import Step

Mark = Callable[[tuple[int, int]], Image.Image]
"""A signature drawn for a picture of so many pixels across and down."""

log = structlog.get_logger()


@asynccontextmanager
async def open_watermark(tools: Tools) -> AsyncIterator[Handler]:
    settings = WatermarkSettings()
    await to_thread.run_sync(load_faces, settings.fonts)
    yield partial(watermark, claims=tools.claims, settings=settings, threads=CapacityLimiter(settings.threads))


ACTOR = Actor(step=Step.WATERMARK, command=Watermark, result=WatermarkDone, open=open_watermark, timeout_seconds=120, prefetch=4)


async def watermark(
    command: Watermark, context: Context, *, claims: ClaimStore, settings: WatermarkSettings, threads: CapacityLimiter
) -> WatermarkDone:
    mark = await mark_of(command.signature, claims, settings)
    sure = {"artist": command.artist or clean(command.signature.text or ""), "job": context.job_id}
    signed = []
    for image in command.images:
        if image.size > settings.max_bytes:
            raise PermanentError(TOO_LARGE, f"{image.uri} has {image.size} bytes, more than WATERMARK_MAX_BYTES, {settings.max_bytes}.")
        work = partial(signed_png, await claims.read(image), mark, command, sure, settings.max_pixels)
        png, (width, height) = await to_thread.run_sync(work, limiter=threads)
        signed.append(await claims.write(png, media_type="image/png", width=width, height=height))
    return WatermarkDone(images=signed)


async def mark_of(signature: Signature, claims: ClaimStore, settings: WatermarkSettings) -> Mark | None:
    """The signature, ready to be drawn at any size; None when there is nothing to sign."""
    if signature.image_uri:
        data = await signature_bytes(signature.image_uri, claims, settings)
        if data is not None:
            picture = await to_thread.run_sync(lambda: with_alpha(read_picture(data, settings.max_pixels, "The signature picture").pixels))
            return lambda size: picture_mark(picture, size, signature.size)
    text = clean(signature.text or "")
    if not text:
        return None
    drawn = runs(text, load_faces(settings.fonts))
    return lambda size: text_mark(drawn, size, signature.size)


async def signature_bytes(uri: str, claims: ClaimStore, settings: WatermarkSettings) -> bytes | None:
    """None when it is missing and need not be there. Raises PermanentError("signature-missing" · "asset-too-large" · "asset-refused")."""
    try:
        return await claims.fetch(uri, max_bytes=settings.signature_max_bytes)
    except PermanentError as error:
        if error.code != "asset-missing":
            raise
        if settings.signature_required:
            raise PermanentError(
                "signature-missing", f"{error} WATERMARK_SIGNATURE_REQUIRED=false lets such orders pass without."
            ) from error
        log.warning("signature.skipped", reason=str(error))
        return None


def signed_png(
    data: bytes, mark: Mark | None, command: Watermark, sure: Mapping[str, str | None], max_pixels: int
) -> tuple[bytes, tuple[int, int]]:
    """The finished PNG and its width and height. Raises PermanentError("image-unreadable" · "image-too-large")."""
    source = read_picture(data, max_pixels)
    picture = on_white(source.pixels)
    if mark:
        picture = sign(picture, mark(picture.size), command.signature)
    return encode_png(picture.convert("RGB"), merged(source.texts, command.metadata, sure)), picture.size
