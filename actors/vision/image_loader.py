"""Loads pictures from claims, base64, `/assets/…`, `s3://` and `https://` addresses; their size is checked before they are decoded."""

import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from anyio import to_thread
from PIL import Image

from actors.imaging.image_decoding import decode_image, flatten_on_white
from actors.vision.settings import VisionSettings
from bus.errors import PermanentError
from bus.net.data_urls import decode_base64
from bus.storage.claim_store import ClaimStore
from bus.storage.fetcher import read_asset
from contracts.claim import Claim

ASSETS_PREFIX = "/assets/"
MIN_SIDE = 8
"""Pixels. A smaller picture is padded with white."""


@dataclass(frozen=True)
class ImageLoader:
    """Loads pictures as RGB; transparent pixels become white.

    Raises PermanentError("image-unreadable" · "image-too-large" · "image-too-costly" · "asset-refused" · "asset-missing" ·
    "asset-too-large").
    """

    claims: ClaimStore
    settings: VisionSettings

    async def from_claim(self, claim: Claim, *, tenant: str | None) -> Image.Image:
        self._check_size(claim.size, claim.uri)
        return await self._decode(await self.claims.read(claim, tenant=tenant), claim.uri)

    async def from_base64(self, encoded: str) -> Image.Image:
        """`encoded`: base64, with or without a `data:` prefix."""
        label, limit = "the picture in the message", self.settings.max_image_bytes
        codes = {"broken_code": "image-unreadable", "large_code": "image-too-large"}
        return await self._decode(await decode_base64(encoded, max_bytes=limit, label=label, **codes), label)

    async def from_url(self, url: str, *, tenant: str | None) -> Image.Image:
        """`url`: from a row of the source database that is the tenant's, not from a message: nothing here binds `/assets/…` to it."""
        return await self._decode(await self._fetch(url, tenant), url)

    async def _fetch(self, url: str, tenant: str | None) -> bytes:
        limit, root = self.settings.max_image_bytes, self.settings.assets_dir
        if url.startswith("/"):
            uri = to_asset_uri(url, root)
            assert root is not None
            return await to_thread.run_sync(read_asset, uri, (root,), limit)
        return await self.claims.fetch_recorded(url, tenant=tenant, max_bytes=limit)

    async def _decode(self, data: bytes, label: str) -> Image.Image:
        self._check_size(len(data), label)
        limit = self.settings.max_image_pixels
        return await to_thread.run_sync(lambda: flatten_on_white(decode_image(data, limit, label).pixels).convert("RGB"))

    def _check_size(self, size: int, label: str) -> None:
        limit = self.settings.max_image_bytes
        if size > limit:
            raise PermanentError("image-too-large", f"{label} has {size} bytes, more than the {limit} that are read (VLM_MAX_IMAGE_BYTES).")

    async def encode_for_model(self, picture: Image.Image) -> bytes:
        """A PNG for the engine, scaled down to the longest allowed side, without the original file's metadata."""
        return await to_thread.run_sync(encode_model_png, picture, self.settings.max_image_side)


def to_asset_uri(url: str, root: Path | None) -> str:
    """The `file://` address of `/assets/…`. Links are checked when the file is read. Raises PermanentError("asset-refused")."""
    if root is None:
        raise PermanentError("asset-refused", f"{url} lies under {ASSETS_PREFIX}, but ASSETS_DIR is not set.")
    path = unquote(url.removeprefix(ASSETS_PREFIX)).replace("\0", "")
    if not url.startswith(ASSETS_PREFIX) or ".." in PurePosixPath(path).parts or path.startswith("/"):
        raise PermanentError("asset-refused", f"{url} does not lie under {ASSETS_PREFIX}.")
    return (root / path).absolute().as_uri()


def encode_model_png(picture: Image.Image, max_side: int) -> bytes:
    scaled = picture.copy()
    scaled.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if min(scaled.size) < MIN_SIDE:
        padded = Image.new("RGB", (max(MIN_SIDE, scaled.width), max(MIN_SIDE, scaled.height)), "white")
        padded.paste(scaled)
        scaled = padded
    with io.BytesIO() as file:
        scaled.save(file, "PNG", compress_level=1)
        return file.getvalue()
