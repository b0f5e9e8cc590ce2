"""The watermark actor: size, position and opacity of the signature, the PNG's metadata, and rejected pictures."""

import io
import json
import struct
import unicodedata
import zlib
from typing import Any

import pytest
from anyio import CapacityLimiter
from PIL import Image, ImageChops, ImageStat
from PIL.PngImagePlugin import PngImageFile, PngInfo

from actors.engines.diffusion.picture_files import build_exif
from actors.settings import WatermarkSettings
from actors.watermark import watermark
from bus.actor import Context
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.claim import Claim
from contracts.watermark import Watermark

GREY = (128, 128, 128)
POSITIONS = ["top-left", "top-center", "top-right", "bottom-left", "bottom-center", "bottom-right"]


def encode_image(picture: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


class WatermarkRig:
    """Stores pictures and runs the actor on them."""

    def __init__(self, claims: ClaimStore, context: Context) -> None:
        self.claims, self.context = claims, context

    async def store(self, data: bytes, media_type: str = "image/png", *, generated: bool = True) -> Claim:
        return await self.claims.write(data, media_type=media_type, tenant=self.context.tenant, generated=generated)

    async def sign(self, data: bytes, settings: WatermarkSettings | None = None, *, generated: bool = True, **command: Any) -> PngImageFile:
        images = [(await self.store(data, generated=generated)).model_dump()]
        order = Watermark.model_validate({"images": images, **command})
        done = await watermark(
            order, self.context, claims=self.claims, settings=settings or WatermarkSettings(), threads=CapacityLimiter(2)
        )
        (claim,) = done.images
        (self.thumbnail,) = done.thumbnails
        signed = Image.open(io.BytesIO(await self.claims.read(claim, tenant=None)))
        assert isinstance(signed, PngImageFile)
        signed.load()
        assert (claim.media_type, claim.width, claim.height) == ("image/png", *signed.size)
        assert await self.claims.is_generated(claim, tenant=None) == generated
        return signed


@pytest.fixture
def watermark_rig(claims: ClaimStore, context: Context) -> WatermarkRig:
    return WatermarkRig(claims, context)


def drawn_box(signed: Image.Image, background: tuple[int, int, int] = GREY) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of all pixels that differ from the background."""
    return ImageChops.difference(signed, Image.new("RGB", signed.size, background)).getbbox()


def plain(width: int = 512, height: int = 512) -> bytes:
    return encode_image(Image.new("RGB", (width, height), GREY))


@pytest.mark.parametrize("text", ["Jane Doe", "김민수 작가", "Łukasz Žižek", "József 김"])
async def test_text_width_is_its_share_with_margins(watermark_rig: WatermarkRig, text: str) -> None:
    signed = await watermark_rig.sign(plain(), signature={"text": text, "size": "medium", "opacity": 1.0})
    box = drawn_box(signed)
    assert (signed.mode, signed.size) == ("RGB", (512, 512))
    assert box is not None
    assert box[2] - box[0] == pytest.approx(0.25 * 512, abs=1)
    assert 512 - box[2] == pytest.approx(10, abs=1)
    assert 512 - box[3] == pytest.approx(10, abs=1)


@pytest.mark.parametrize(("size", "share"), [("small", 0.15), ("medium", 0.25), ("large", 0.35)])
async def test_sizes_are_shares_of_the_width(watermark_rig: WatermarkRig, size: str, share: float) -> None:
    mark = await watermark_rig.store(encode_image(Image.new("RGBA", (300, 60), "red")))
    box = drawn_box(await watermark_rig.sign(plain(), signature={"image_uri": mark.uri, "size": size, "opacity": 1.0}))
    assert box is not None
    assert box[2] - box[0] == round(share * 512)
    assert box[3] - box[1] == pytest.approx(share * 512 / 5, abs=1)


@pytest.mark.parametrize("position", POSITIONS)
async def test_signature_has_margin_of_ten_pixels(watermark_rig: WatermarkRig, position: str) -> None:
    mark = await watermark_rig.store(encode_image(Image.new("RGBA", (300, 60), "red")))
    box = drawn_box(await watermark_rig.sign(plain(512, 256), signature={"image_uri": mark.uri, "position": position, "opacity": 1.0}))
    assert box is not None
    left, top, right, bottom = box
    vertical, horizontal = position.split("-")
    assert (top if vertical == "top" else 256 - bottom) == 10
    assert {"left": left == 10, "right": 512 - right == 10, "center": abs(left - (512 - right)) <= 1}[horizontal]


async def test_opacity_mixes_the_mark_with_the_picture_in_both_scales(watermark_rig: WatermarkRig) -> None:
    mark = await watermark_rig.store(encode_image(Image.new("RGBA", (300, 60), "white")))
    levels = []
    for opacity in (1.0, 0.5, 128, 0.0):
        signed = await watermark_rig.sign(
            encode_image(Image.new("RGB", (256, 256), "black")), signature={"image_uri": mark.uri, "opacity": opacity}
        )
        pixel = signed.getpixel((220, 240))
        assert isinstance(pixel, tuple)
        levels.append(pixel[0])
    assert levels == [255, pytest.approx(128, abs=1), pytest.approx(128, abs=1), 0]


@pytest.mark.parametrize("background", ["white", "black"])
async def test_text_is_visible_on_any_background(watermark_rig: WatermarkRig, background: str) -> None:
    signed = await watermark_rig.sign(encode_image(Image.new("RGB", (512, 512), background)), signature={"text": "Jane Doe"})
    levels = signed.convert("L").getextrema()
    assert isinstance(levels[0], int | float)
    assert isinstance(levels[1], int | float)
    assert levels[1] - levels[0] > 60


@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 2048), (2048, 64), (12, 12), (1, 1)])
async def test_mark_never_exceeds_the_picture(watermark_rig: WatermarkRig, width: int, height: int) -> None:
    tall = await watermark_rig.store(encode_image(Image.new("RGBA", (20, 4000), "red")))
    for signature in ({"text": "A"}, {"text": "김" * 200}, {"image_uri": tall.uri}):
        signed = await watermark_rig.sign(plain(width, height), signature={**signature, "size": "large"})
        assert signed.size == (width, height)


async def test_height_of_short_text_is_limited_to_its_share(watermark_rig: WatermarkRig) -> None:
    box = drawn_box(await watermark_rig.sign(plain(512, 512), signature={"text": "l", "size": "medium", "opacity": 1.0}))
    assert box is not None
    assert box[3] - box[1] <= 0.25 * 512 + 2


@pytest.mark.parametrize("char", ["ሀ", "𠮷"])
async def test_missing_glyph_is_named(watermark_rig: WatermarkRig, char: str) -> None:
    with pytest.raises(PermanentError, match=f"U\\+{ord(char):04X}") as error:
        await watermark_rig.sign(plain(), signature={"text": f"Jane {char}"})
    assert error.value.code == "glyph-missing"


async def test_decomposed_unicode_is_drawn_like_composed(watermark_rig: WatermarkRig) -> None:
    composed, decomposed = [
        await watermark_rig.sign(plain(), signature={"text": unicodedata.normalize(form, "김민수 Győző")}, artist="x")
        for form in ("NFC", "NFD")
    ]
    assert ImageChops.difference(composed, decomposed).getbbox() is None


@pytest.mark.parametrize("signature", [{}, {"text": ""}, {"text": " \u200b\n "}])
async def test_image_without_signature_keeps_metadata(watermark_rig: WatermarkRig, signature: dict[str, Any]) -> None:
    signed = await watermark_rig.sign(plain(), signature=signature, artist="Jane")
    assert drawn_box(signed) is None
    assert signed.text["artist"] == "Jane"


async def test_png_metadata_names_artist_and_parameters(watermark_rig: WatermarkRig) -> None:
    metadata = {"seed": 42, "steps": 50, "model": "sd-1.5", "tags": ["고양이"], "none": None}
    signed = await watermark_rig.sign(plain(), signature={"text": "x"}, artist="김민수", metadata=metadata)
    assert signed.text == {"seed": "42", "steps": "50", "model": "sd-1.5", "tags": '["고양이"]', "artist": "김민수", "job": "generation-7"}


async def test_non_latin_text_is_written_as_itxt(watermark_rig: WatermarkRig, claims: ClaimStore, context: Context) -> None:
    images = [await watermark_rig.store(plain())]
    order = Watermark(images=images, artist="김민수", metadata={"model": "café"})
    done = await watermark(order, context, claims=claims, settings=WatermarkSettings(), threads=CapacityLimiter(1))
    data = await claims.read(done.images[0], tenant=None)
    assert b"iTXtartist\0" in data
    assert "김민수".encode() in data
    assert b"tEXtmodel\0" + "café".encode("latin-1") in data


async def test_existing_metadata_is_preserved_and_takes_precedence(watermark_rig: WatermarkRig) -> None:
    """Each picture of an order has its own seed, but the order's metadata has only the first one's."""
    chunks = PngInfo()
    chunks.add_text("seed", "45")
    chunks.add_itxt("prompt", "고양이", "ko", "프롬프트")
    chunks.add_text("artist", "somebody else")
    picture = encode_image(Image.new("RGB", (64, 64)), pnginfo=chunks)
    signed = await watermark_rig.sign(picture, artist="Jane", metadata={"seed": 42, "steps": 50})
    assert signed.text == {"seed": "45", "steps": "50", "prompt": "고양이", "artist": "Jane", "job": "generation-7"}
    assert signed.text["prompt"].lang == "ko"  # type: ignore[union-attr]


async def test_picture_of_a_user_keeps_its_metadata_but_none_that_names_a_model(watermark_rig: WatermarkRig) -> None:
    chunks = PngInfo()
    for key, value in {"Model": "sd-1.5", "seed": "45", "title": "a cat"}.items():
        chunks.add_text(key, value)
    picture = encode_image(Image.new("RGB", (64, 64)), pnginfo=chunks)
    metadata = {"model": "sd-1.5", "STEPS": 50, "prompt_sha256": "ab", "lora_sha256": "cd", "tags": "cat"}
    signed = await watermark_rig.sign(picture, generated=False, artist="Jane", metadata=metadata)
    assert signed.text == {"title": "a cat", "tags": "cat", "artist": "Jane", "job": "generation-7"}


@pytest.mark.parametrize("output_format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("generated", [True, False])
async def test_metadata_of_a_generated_jpeg_or_webp_are_kept(watermark_rig: WatermarkRig, output_format: str, generated: bool) -> None:
    """A picture of a user keeps those that name no model, as one with text chunks does."""
    exif = build_exif(json.dumps({"Seed": "9", "title": "가을"}).encode("ascii"))
    signed = await watermark_rig.sign(encode_image(Image.new("RGB", (64, 64), GREY), output_format, exif=exif), generated=generated)
    assert signed.text.get("title") == "가을"
    assert signed.text.get("Seed") == ("9" if generated else None)


async def test_order_adds_no_key_that_differs_from_one_of_the_picture_in_case_alone(watermark_rig: WatermarkRig) -> None:
    chunks = PngInfo()
    chunks.add_text("seed", "45")
    picture = encode_image(Image.new("RGB", (64, 64)), pnginfo=chunks)
    signed = await watermark_rig.sign(picture, metadata={"Seed": 1, "SEED": 2, "seed": 3, "tags": "cat"})
    assert signed.text == {"seed": "45", "tags": "cat", "job": "generation-7"}


@pytest.mark.parametrize("key", ["", " seed", "seed ", "a  b", "x" * 80, "씨앗", "a\0b"])
async def test_invalid_metadata_key_is_skipped(watermark_rig: WatermarkRig, key: str) -> None:
    signed = await watermark_rig.sign(plain(), metadata={key: "1", "steps": 2, "long": "x" * 40_000})
    assert signed.text == {"steps": "2", "job": "generation-7"}


async def test_exif_and_icc_profiles_are_removed(watermark_rig: WatermarkRig) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    signed = await watermark_rig.sign(encode_image(Image.new("RGB", (64, 64), GREY), "JPEG", exif=exif, icc_profile=b"profile"))
    assert not {"exif", "icc_profile"} & set(signed.info)


async def test_exif_orientation_is_applied(watermark_rig: WatermarkRig) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert (await watermark_rig.sign(encode_image(Image.new("RGB", (64, 32)), "JPEG", exif=exif))).size == (32, 64)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "RGB"])
async def test_every_mode_becomes_rgb(watermark_rig: WatermarkRig, mode: str) -> None:
    signed = await watermark_rig.sign(encode_image(Image.new("L", (64, 64), 255).convert(mode)), signature={"text": "x"})
    assert (signed.mode, signed.getpixel((0, 0))) == ("RGB", (255, 255, 255))


async def test_transparency_is_flattened_on_white(watermark_rig: WatermarkRig) -> None:
    assert (await watermark_rig.sign(encode_image(Image.new("RGBA", (64, 64), (200, 0, 0, 0))))).getpixel((0, 0)) == (255, 255, 255)


async def test_sixteen_bit_image_is_scaled_to_eight(watermark_rig: WatermarkRig) -> None:
    signed = await watermark_rig.sign(encode_image(Image.new("I;16", (64, 64), 0x8000)))
    assert signed.getpixel((0, 0)) == (128, 128, 128)


def decompression_bomb(side: int) -> bytes:
    """A small PNG file whose header claims a huge square."""

    def chunk(chunk_type: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + chunk_type + body + struct.pack(">I", zlib.crc32(chunk_type + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [6_000, 10_000, 100_000])
async def test_decompression_bomb_is_rejected_before_decoding(watermark_rig: WatermarkRig, side: int) -> None:
    with pytest.raises(PermanentError) as error:
        await watermark_rig.sign(decompression_bomb(side))
    assert error.value.code == "image-too-large"


async def test_compressed_text_bomb_is_left_out(watermark_rig: WatermarkRig) -> None:
    chunks = PngInfo()
    chunks.add_text("prompt", "x" * (8 << 20), zip=True)
    signed = await watermark_rig.sign(encode_image(Image.new("RGB", (64, 64)), pnginfo=chunks))
    assert signed.text == {"job": "generation-7"}


async def test_oversized_image_is_not_read(watermark_rig: WatermarkRig) -> None:
    with pytest.raises(PermanentError) as error:
        await watermark_rig.sign(plain(), WatermarkSettings(max_bytes=100))
    assert error.value.code == "image-too-large"


@pytest.mark.parametrize(
    "data",
    [b"", b"<svg/>", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(100), plain()[:300], plain()[:-30], decompression_bomb(64)],
)
async def test_truncated_image_is_rejected(watermark_rig: WatermarkRig, data: bytes) -> None:
    with pytest.raises(PermanentError) as error:
        await watermark_rig.sign(data)
    assert error.value.code == "image-unreadable"


async def test_signature_of_fifty_megabytes_is_rejected(watermark_rig: WatermarkRig) -> None:
    large = await watermark_rig.store(bytes(50 << 20))
    with pytest.raises(PermanentError) as error:
        await watermark_rig.sign(plain(), signature={"image_uri": large.uri})
    assert error.value.code == "asset-too-large"


async def test_signature_that_is_no_picture_is_rejected(watermark_rig: WatermarkRig) -> None:
    not_an_image = await watermark_rig.store(b"hello")
    with pytest.raises(PermanentError, match="signature") as error:
        await watermark_rig.sign(plain(), signature={"image_uri": not_an_image.uri})
    assert error.value.code == "image-unreadable"


async def test_missing_signature_is_an_error_unless_optional(watermark_rig: WatermarkRig) -> None:
    missing = (await watermark_rig.store(b"x")).uri + "x"
    with pytest.raises(PermanentError) as error:
        await watermark_rig.sign(plain(), signature={"image_uri": missing})
    assert error.value.code == "signature-missing"
    unsigned = await watermark_rig.sign(plain(), signature={"image_uri": missing, "required": False})
    assert drawn_box(unsigned) is None
    named = await watermark_rig.sign(plain(), signature={"image_uri": missing, "required": False, "text": "Kim"})
    assert drawn_box(named) is not None, "the artist's name is drawn instead"


async def test_same_order_gives_same_bytes(watermark_rig: WatermarkRig) -> None:
    """A redelivery writes the same object again."""
    order: dict[str, Any] = {"signature": {"text": "김민수"}, "artist": "김민수", "metadata": {"seed": 1}}
    first, second = [await watermark_rig.sign(plain(), **order) for _ in range(2)]
    assert first.tobytes() == second.tobytes()
    assert first.text == second.text


async def test_thumbnail_shows_the_signed_picture(watermark_rig: WatermarkRig) -> None:
    """A JPEG of the same proportions with the signature in it, whether the picture is larger or smaller than a thumbnail."""
    for size, expected in (((768, 512), (384, 256)), ((64, 128), (64, 128))):
        signed = await watermark_rig.sign(plain(*size), signature={"text": "Jane Doe", "size": "large", "opacity": 1.0})
        data = await watermark_rig.claims.read(watermark_rig.thumbnail, tenant=None)
        thumbnail = Image.open(io.BytesIO(data))
        assert (thumbnail.format, thumbnail.size, watermark_rig.thumbnail.media_type) == ("JPEG", expected, "image/jpeg")
        difference = ImageChops.difference(thumbnail, signed.resize(expected)).convert("L")
        assert ImageStat.Stat(difference).mean[0] < 4
        assert ImageChops.difference(thumbnail, Image.new("RGB", expected, GREY)).getbbox() is not None


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
async def test_signed_picture_is_written_in_the_ordered_format(watermark_rig: WatermarkRig, output_format: str) -> None:
    """With its metadata in EXIF; the quality decides how many bytes it has."""
    source = await watermark_rig.store(encode_image(Image.effect_noise((128, 64), 80).convert("RGB"), pnginfo=seed_chunk()))
    files = []
    for quality in (None, 30):
        fields = {"images": [source.model_dump()], "artist": "Jané", "output_format": output_format, "quality": quality}
        command = Watermark.model_validate(fields)
        threads = CapacityLimiter(1)
        done = await watermark(command, watermark_rig.context, claims=watermark_rig.claims, settings=WatermarkSettings(), threads=threads)
        (claim,) = done.images
        assert (claim.media_type, claim.width, claim.height) == (f"image/{output_format}", 128, 64)
        assert await watermark_rig.claims.is_generated(claim, tenant=None)
        files.append(await watermark_rig.claims.read(claim, tenant=None))
    picture = Image.open(io.BytesIO(files[0]))
    assert (picture.format, picture.size) == (output_format.upper(), (128, 64))
    comment = picture.getexif().get_ifd(0x8769)[0x9286]
    assert json.loads(comment.removeprefix(b"ASCII\0\0\0")) == {"seed": "42", "artist": "Jané", "job": watermark_rig.context.job_id}
    assert len(files[1]) < 0.8 * len(files[0])


def seed_chunk() -> PngInfo:
    info = PngInfo()
    info.add_text("seed", "42")
    return info


async def test_picture_that_its_format_cannot_hold_is_refused_by_name(watermark_rig: WatermarkRig) -> None:
    source = await watermark_rig.store(encode_image(Image.new("RGB", (16_400, 8), GREY)))
    command = Watermark.model_validate({"images": [source.model_dump()], "output_format": "webp"})
    with pytest.raises(PermanentError, match="16400×8 with its metadata cannot be written as webp: order png") as raised:
        await watermark(
            command, watermark_rig.context, claims=watermark_rig.claims, settings=WatermarkSettings(), threads=CapacityLimiter(1)
        )  # fmt: skip
    assert raised.value.code == "format-unsuitable"
