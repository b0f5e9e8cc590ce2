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

from actors.pictures.reading import on_white, read_picture
from actors.seeing.settings import SeeingSettings
from bus.assets import read_asset
from bus.claims import ClaimStore
from bus.errors import PermanentError
from contracts.claim import Claim

DATA_URL = re.compile(r"^data:image/[\w.+-]+;base64,", re.IGNORECASE)
ASSETS = "/assets/"


@dataclass(frozen=True)
class Pictures:
    """Opens pictures.

    Raises PermanentError("image-unreadable" · "image-too-large" · "asset-refused" · "asset-missing" · "asset-too-large").
    """

    claims: ClaimStore
    settings: SeeingSettings

    async def of_claim(self, claim: Claim) -> Image.Image:
        self._check_size(claim.size, claim.uri)
        return await self._decoded(await self.claims.read(claim), claim.uri)

    async def of_text(self, encoded: str) -> Image.Image:
        """base64, with or without a `data:` prefix."""
        body = DATA_URL.sub("", encoded.strip())
        self._check_size(len(body) * 3 // 4, "the picture in the message")
        try:
            data = base64.b64decode("".join(body.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise PermanentError("image-unreadable", f"the picture in the message is no base64: {error}") from error
        return await self._decoded(data, "the picture in the message")

    async def of_address(self, address: str) -> Image.Image:
        """An asset address of the source system, or any address that the store may fetch."""
        return await self._decoded(await self._fetched(address), address)

    async def _fetched(self, address: str) -> bytes:
        limit, root = self.settings.max_image_bytes, self.settings.assets_dir
        if address.startswith("/"):
            uri = asset_uri(address, root)
            assert root is not None
            return await to_thread.run_sync(read_asset, uri, (root,), limit)
        return await self.claims.fetch(address, max_bytes=limit)

    async def _decoded(self, data: bytes, what: str) -> Image.Image:
        self._check_size(len(data), what)
        limit = self.settings.max_image_pixels
        return await to_thread.run_sync(lambda: on_white(read_picture(data, limit, what).pixels).convert("RGB"))

    def _check_size(self, size: int, what: str) -> None:
        limit = self.settings.max_image_bytes
        if size > limit:
            raise PermanentError(
                "image-too-large", f"{what} has {size} bytes, more than the {limit} that are looked at (VLM_MAX_IMAGE_BYTES)."
            )

    async def shown(self, picture: Image.Image) -> bytes:
        """As the engine gets it: PNG, no side longer than the limit, nothing of the original file but its pixels."""
        return await to_thread.run_sync(encoded, picture, self.settings.max_image_side)


def asset_uri(address: str, root: Path | None) -> str:
    """The file behind `/assets/…`. Where links lead is judged when it is read. Raises PermanentError("asset-refused")."""
    if root is None:
        raise PermanentError("asset-refused", f"{address} lies under {ASSETS}, but ASSETS_DIR is not set.")
    inside = unquote(address.removeprefix(ASSETS)).replace("\0", "")
    if not address.startswith(ASSETS) or ".." in PurePosixPath(inside).parts or inside.startswith("/"):
        raise PermanentError("asset-refused", f"{address} does not lie under {ASSETS}.")
    return (root / inside).absolute().as_uri()


def encoded(picture: Image.Image, longest: int) -> bytes:
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    if min(small.size) < 8:
        room = Image.new("RGB", (max(8, small.width), max(8, small.height)), "white")
        room.paste(small)
        small = room
    out = io.BytesIO()
    small.save(out, "PNG", compress_level=1)
    return out.getvalue()
