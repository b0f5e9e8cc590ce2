"""Pictures from wherever a command may name them, checked before they are decoded: claims, base64, `/assets/…`, `s3://`, `https://`."""

import base64
import binascii
import io
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from anyio import to_thread
from PIL import Image

from actors.imaging.image_decoding import decode_image, flatten_on_white
from actors.vision.settings import VisionSettings
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from bus.storage.fetcher import read_asset
from contracts.claim import Claim

DATA_URL = re.compile(r"^data:image/[\w.+-]+;base64,", re.IGNORECASE)
ASSETS_PREFIX = "/assets/"


@dataclass(frozen=True)
class ImageLoader:
    """Opens pictures.

    Raises PermanentError("image-unreadable" · "image-too-large" · "asset-refused" · "asset-missing" · "asset-too-large").
    """

    claims: ClaimStore
    settings: VisionSettings

    async def from_claim(self, claim: Claim) -> Image.Image:
        self._check_size(claim.size, claim.uri)
        return await self._decode(await self.claims.read(claim), claim.uri)

    async def from_base64(self, encoded: str) -> Image.Image:
        """base64, with or without a `data:` prefix."""
        body = DATA_URL.sub("", encoded.strip())
        self._check_size(len(body) * 3 // 4, "the picture in the message")
        try:
            data = base64.b64decode("".join(body.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise PermanentError("image-unreadable", f"the picture in the message is no base64: {error}") from error
        return await self._decode(data, "the picture in the message")

    async def from_url(self, url: str) -> Image.Image:
        """An asset address of the source system, or any address that the store may fetch."""
        return await self._decode(await self._fetch(url), url)

    async def _fetch(self, url: str) -> bytes:
        limit, root = self.settings.max_image_bytes, self.settings.assets_dir
        if url.startswith("/"):
            uri = to_asset_uri(url, root)
            assert root is not None
            return await to_thread.run_sync(read_asset, uri, (root,), limit)
        return await self.claims.fetch(url, max_bytes=limit)

    async def _decode(self, data: bytes, label: str) -> Image.Image:
        self._check_size(len(data), label)
        limit = self.settings.max_image_pixels
        return await to_thread.run_sync(lambda: flatten_on_white(decode_image(data, limit, label).pixels).convert("RGB"))

    def _check_size(self, size: int, label: str) -> None:
        limit = self.settings.max_image_bytes
        if size > limit:
            raise PermanentError(
                "image-too-large", f"{label} has {size} bytes, more than the {limit} that are looked at (VLM_MAX_IMAGE_BYTES)."
            )

    async def encode_for_model(self, picture: Image.Image) -> bytes:
        """As the engine gets it: PNG, no side longer than the limit, nothing of the original file but its pixels."""
        return await to_thread.run_sync(encode_model_png, picture, self.settings.max_image_side)


def to_asset_uri(url: str, root: Path | None) -> str:
    """The file behind `/assets/…`. Where links lead is judged when it is read. Raises PermanentError("asset-refused")."""
    if root is None:
        raise PermanentError("asset-refused", f"{url} lies under {ASSETS_PREFIX}, but ASSETS_DIR is not set.")
    inside = unquote(url.removeprefix(ASSETS_PREFIX)).replace("\0", "")
    if not url.startswith(ASSETS_PREFIX) or ".." in PurePosixPath(inside).parts or inside.startswith("/"):
        raise PermanentError("asset-refused", f"{url} does not lie under {ASSETS_PREFIX}.")
    return (root / inside).absolute().as_uri()


def encode_model_png(picture: Image.Image, max_side: int) -> bytes:
    small = picture.copy()
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if min(small.size) < 8:
        room = Image.new("RGB", (max(8, small.width), max(8, small.height)), "white")
        room.paste(small)
        small = room
    out = io.BytesIO()
    small.save(out, "PNG", compress_level=1)
    return out.getvalue()
