"""Small picture files with metadata of any form: segments of a JPEG, chunks of a PNG and of a WebP, the fields of EXIF."""

import io
import struct
import zlib
from typing import Any

from PIL import Image, ImageCms

EXIF_HEAD = b"Exif\0\0"
SIZE = (60, 40)
COLOR = (200, 30, 30)


def encode(picture: Image.Image, image_format: str, **options: Any) -> bytes:
    with io.BytesIO() as file:
        picture.save(file, image_format, **options)
        return file.getvalue()


def plain(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", SIZE, COLOR).convert(mode)


def noise(width: int = 200, height: int = 150) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    return encode(plain(mode), "JPEG", quality=95, **options)


def png(mode: str = "RGB", **options: Any) -> bytes:
    return encode(plain(mode), "PNG", **options)


def with_segment(data: bytes, marker: int, body: bytes, length: int | None = None) -> bytes:
    """A JPEG with one more segment behind its start; `length`: what the segment says, if not the truth."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2 if length is None else length) + body + data[2:]


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    right = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", right if checksum is None else checksum)


def with_chunk(data: bytes, kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """A PNG with one more chunk behind its header."""
    return data[:33] + chunk(kind, body, checksum) + data[33:]


def exif(*fields: bytes, order: str = "<") -> bytes:
    """EXIF without its head; each field has twelve bytes."""
    start = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    return start + struct.pack(f"{order}H", len(fields)) + b"".join(fields) + b"\0\0\0\0"


def exif_comment(comment: bytes, order: str = "<", count: int | None = None) -> bytes:
    """EXIF without its head, with a UserComment in its second directory; `count`: the bytes that it says, if not the truth."""
    pointer = exif(struct.pack(f"{order}HHII", 0x8769, 4, 1, 26), order=order)
    field = struct.pack(f"{order}HHHII", 1, 0x9286, 7, len(comment) if count is None else count, 44)
    return pointer + field + bytes(44 - len(pointer) - len(field)) + comment


def orientation(value: int, order: str = "<") -> bytes:
    return struct.pack(f"{order}HHIHH", 0x112, 3, 1, value, 0)


P3_PRIMARIES = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


def wide_profile() -> bytes:
    """The profile of an iPhone's pictures: sRGB's with the primaries of Display P3, and another name."""
    profile = srgb_profile().replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))
    for number in range(struct.unpack_from(">I", profile, 128)[0]):
        name, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if name in P3_PRIMARIES:
            values = struct.pack(">3i", *(round(value * 65536) for value in P3_PRIMARIES[name]))
            profile = profile[: offset + 8] + values + profile[offset + 20 :]
    return profile


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def jpeg_in_three_scans(picture: Image.Image) -> bytes:
    """A sequential JPEG with one scan for each of its components, as some encoders write it; Pillow writes one scan for all."""
    files = [encode(component, "JPEG") for component in picture.convert("YCbCr").split()]
    starts = [file.index(b"\xff\xda") for file in files]
    frame = files[0].index(b"\xff\xc0")
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    header = struct.pack(">BBH", 0xFF, 0xC0, 17) + files[0][frame + 4 : frame + 9] + b"\3" + components
    scans = [
        b"\xff\xda\0\x08\1" + bytes((number,)) + file[start + 6 : -2]
        for number, (file, start) in enumerate(zip(files, starts, strict=True), 1)
    ]
    return files[0][:frame] + header + files[0][frame + 13 : starts[0]] + b"".join(scans) + b"\xff\xd9"
