"""Decodes untrusted image files in a process that can be killed: allowed formats only, a limit of pixels, of time and of memory."""

from dataclasses import dataclass

from PIL import Image
from PIL.PngImagePlugin import iTXt

from actors.decoding.picture_file import TOO_COSTLY, TOO_LARGE, UNREADABLE
from actors.decoding.pictures import picture_cpu_seconds
from actors.decoding.pool import DecoderPool, Job

IMAGE_UNREADABLE, IMAGE_TOO_LARGE = UNREADABLE, TOO_LARGE
BASE_MEMORY_BYTES, MEMORY_BYTES_PER_PIXEL = 512 << 20, 32
"""Address space of a decoder: its libraries, and a few copies of the pixels."""
PICTURES = DecoderPool()


@dataclass(frozen=True)
class DecodedImage:
    """Decoded pixels, RGB or RGBA, and the text chunks of a PNG, or those that a JPEG or WebP of ours has as its comment."""

    pixels: Image.Image
    text_chunks: dict[str, str]


def decode_image(data: bytes, max_pixels: int, label: str = "The picture") -> DecodedImage:
    """The first frame of a PNG, JPEG, WebP, GIF or BMP, fully decoded, in sRGB and rotated as its EXIF orientation says. Blocks.

    A picture whose pixels are cut short is refused: half of it must be neither judged nor signed. Damaged metadata count as absent.

    Raises PermanentError("image-unreadable" · "image-too-large" · "image-too-costly").
    """
    arguments = {"max_pixels": max_pixels, "label": label}
    answer, pixels = PICTURES.decode(picture_job(arguments, max_pixels), data)
    chunks = {key: iTXt(*parts) if any(parts[1:]) else parts[0] for key, parts in answer["text"].items()}
    return DecodedImage(Image.frombytes(answer["mode"], tuple(answer["size"]), pixels), chunks)


def picture_job(arguments: dict[str, object], max_pixels: int) -> Job:
    """The time that the decoder takes is limited for the picture's own pixels; `cpu_seconds` and the rest for `max_pixels`."""
    cpu_seconds = picture_cpu_seconds(max_pixels)
    return Job(
        kind="picture",
        arguments=arguments,
        cpu_seconds=cpu_seconds,
        wall_seconds=10 + 3 * cpu_seconds,
        memory_bytes=BASE_MEMORY_BYTES + MEMORY_BYTES_PER_PIXEL * max_pixels,
        max_answer_bytes=4 * max_pixels,
        broken_code=UNREADABLE,
        costly_code=TOO_COSTLY,
    )


def to_rgba(picture: Image.Image) -> Image.Image:
    return picture.convert("RGBA")


def flatten_on_white(picture: Image.Image) -> Image.Image:
    """Opaque RGBA: transparent pixels become white, not the hidden colour of the pixel."""
    layer = to_rgba(picture)
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
