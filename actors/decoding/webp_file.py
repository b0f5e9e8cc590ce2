"""The chunks of a WebP: those that its pixels need, its orientation, colour profile and comment. A picture cut short stays so."""

import struct

from actors.decoding.metadata import MAX_PROFILE_BYTES, read_comment, read_orientation
from actors.decoding.picture_file import PictureFile, plain_chunks

HEADER_BYTES = 12
PIXEL_CHUNKS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
METADATA_FLAGS = 0x20 | 0x08 | 0x04
"""In VP8X: that the file has a colour profile, EXIF, XMP."""


def read_webp(data: bytes) -> PictureFile:
    pixels, profile, exif, offset = [], None, b"", HEADER_BYTES
    while offset + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, offset)
        end = offset + 8 + length + length % 2
        body = data[offset + 8 : offset + 8 + length]
        if kind == b"VP8X" and body:
            body = bytes([body[0] & ~METADATA_FLAGS]) + body[1:]
        if kind in PIXEL_CHUNKS:
            pixels.append(data[offset : offset + 8] + body + b"\0" * (length % 2))
        elif kind == b"EXIF":
            exif = body
        elif kind == b"ICCP":
            profile = body[:MAX_PROFILE_BYTES]
        offset = end
    content, text = b"".join(pixels), plain_chunks(read_comment(exif))
    return PictureFile(b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content, read_orientation(exif), profile, text)
