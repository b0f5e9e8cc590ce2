"""The pictures of an order, read from their claims: one to start from with its mask, or one to follow. Decoded, checked, scaled down."""

from functools import partial

from anyio import CapacityLimiter, to_thread
from PIL import Image, ImageChops

from actors.engines.diffusion.requests import ControlSource, EditSource, InputPicture
from actors.engines.settings import ImageSettings
from actors.imaging.image_decoding import IMAGE_TOO_LARGE, decode_image, flatten_on_white
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.claim import Claim
from contracts.image import Control, Edit

LONGEST_SIDE = 2048
"""Pixels. A picture with a longer side is scaled down: no order is for a larger one."""
DRAWN_ANEW = 128
"""The least value of a mask's pixel that is drawn anew."""
THREADS = 2
"""Pictures that are decoded at once."""


class PictureReader:
    """Reads the pictures of orders. Every method raises PermanentError("claim-missing" · "claim-corrupt" · "claim-refused" ·
    "image-too-large" · "image-unreadable" · "image-too-costly"), and TemporaryError when the store is unavailable."""

    def __init__(self, claims: ClaimStore, settings: ImageSettings) -> None:
        self._claims, self._settings = claims, settings
        self._threads = CapacityLimiter(THREADS)

    async def read_edit(self, edit: Edit | None, tenant: str | None) -> EditSource | None:
        """Raises PermanentError("mask-size-differs" · "mask-empty"), too."""
        if edit is None:
            return None
        image = await self._read(edit.image, tenant, "The picture")
        mask = await self._read(edit.mask, tenant, "The mask") if edit.mask else None
        prepare = partial(prepare_edit, image, mask, edit.strength)
        return await to_thread.run_sync(prepare, limiter=self._threads)

    async def read_control(self, control: Control | None, tenant: str | None) -> ControlSource | None:
        if control is None:
            return None
        image = await self._read(control.image, tenant, "The picture of control")
        picture = await to_thread.run_sync(prepare_picture, image, limiter=self._threads)
        return ControlSource(picture, control.model, control.scale)

    async def _read(self, claim: Claim, tenant: str | None, label: str) -> Image.Image:
        """RGB or RGBA, rotated as its EXIF orientation says."""
        limit = self._settings.input_max_bytes
        if claim.size > limit:
            message = f"{label} has {claim.size} bytes, more than the {limit} that are read (IMAGE_INPUT_MAX_BYTES)."
            raise PermanentError(IMAGE_TOO_LARGE, message)
        data = await self._claims.read(claim, tenant=tenant)
        decode = partial(decode_image, data, self._settings.input_max_pixels, label)
        return (await to_thread.run_sync(decode, limiter=self._threads)).pixels


def prepare_edit(image: Image.Image, mask: Image.Image | None, strength: float) -> EditSource:
    """Raises PermanentError("mask-size-differs" · "mask-empty"). Blocks."""
    picture = prepare_picture(image)
    if mask is None:
        return EditSource(picture, strength=strength)
    if mask.size != image.size:
        sizes = f"{mask.width}×{mask.height}, its picture {image.width}×{image.height} (rotated as its EXIF says)"
        raise PermanentError("mask-size-differs", f"The mask is {sizes}: send a mask of the picture's size.")
    drawn = pixels_drawn_anew(mask)
    if drawn.size != (picture.width, picture.height):
        drawn = shrink_mask(drawn, (picture.width, picture.height))
    if drawn.getbbox() is None:
        message = "The mask has no pixel that is drawn anew: paint those white, or make them transparent."
        raise PermanentError("mask-empty", message)
    return EditSource(picture, InputPicture("L", *drawn.size, drawn.tobytes()), strength)


def pixels_drawn_anew(mask: Image.Image) -> Image.Image:
    """Mode L, 255 where the picture is drawn anew, else 0: where the mask is transparent or, if it is nowhere, where it is white."""
    levels = mask.convert("RGB").convert("L")
    if mask.mode == "RGBA":
        alpha = mask.getchannel("A")
        if int(alpha.getextrema()[0]) < 255:  # type: ignore[arg-type]  # of one band
            levels = ImageChops.invert(alpha)
    return levels.point([255 if level >= DRAWN_ANEW else 0 for level in range(256)])


def shrink_mask(drawn: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A smaller mask of 0 and 255 in which every pixel that is drawn anew still is, so that thin lines stay."""
    shares = drawn.convert("F").resize(size, Image.Resampling.BOX)  # in bytes, a small share would be rounded to none
    return shares.point(lambda share: share * 2.0**40).convert("L")  # any share but none becomes more than 255, which L holds at most


def prepare_picture(image: Image.Image) -> InputPicture:
    """RGB, at most LONGEST_SIDE pixels wide and high; transparent pixels become white. Blocks."""
    picture = flatten_on_white(image).convert("RGB") if image.mode == "RGBA" else image
    if max(picture.size) > LONGEST_SIDE:
        picture = picture.copy()
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return InputPicture("RGB", *picture.size, picture.tobytes())
