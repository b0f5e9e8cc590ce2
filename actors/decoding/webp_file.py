"""The chunks of a WebP: those that its pixels need, its orientation and its colour profile. A picture that ends early stays incomplete."""

import struct

from actors.decoding.metadata import MAX_PROFILE_BYTES, NORMAL, read_orientation
from actors.decoding.picture_file import PictureFile

HEADER_BYTES = 12
PIXEL_CHUNKS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
METADATA_FLAGS = 0x20 | 0x08 | 0x04
"""In VP8X: that the file has a colour profile, EXIF, XMP."""


def read_webp(data: bytes) -> PictureFile:
    pixels, orientation, profile, offset = [], NORMAL, None, HEADER_BYTES
    while offset + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, offset)
        end = offset + 8 + length + length % 2
        body = data[offset + 8 : offset + 8 + length]
        if kind == b"VP8X" and body:
            body = bytes([body[0] & ~METADATA_FLAGS]) + body[1:]
        if kind in PIXEL_CHUNKS:
            pixels.append(data[offset : offset + 8] + body + b"\0" * (length % 2))
        elif kind == b"EXIF":
            orientation = read_orientation(body)
        elif kind == b"ICCP":
            profile = body[:MAX_PROFILE_BYTES]
        offset = end
    content = b"".join(pixels)
    return PictureFile(b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content, orientation, profile)
