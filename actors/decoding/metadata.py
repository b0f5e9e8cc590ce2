"""Metadata of picture files, read for what a reader needs and no more: the orientation of EXIF, and a bounded decompression.

Metadata never make a picture unreadable: whatever cannot be read counts as absent.
"""

import struct
import zlib

ORIENTATION_TAG = 0x0112
SHORT, LONG, BYTE = 3, 4, 1
MAX_FIELDS = 1000
"""Fields of the first directory of EXIF that are looked at. Cameras write about twenty."""
EXIF_HEAD = b"Exif\0\0"
NORMAL = 1


def read_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8; 1 when EXIF says none, or one that is no number from 1 to 8.

    Some programs write the head `Exif` twice. Other fields are not read, so a damaged one does no harm.
    """
    while exif.startswith(EXIF_HEAD):
        exif = exif[len(EXIF_HEAD) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return NORMAL
    try:
        directory = struct.unpack_from(f"{order}I", exif, 4)[0]
        count = struct.unpack_from(f"{order}H", exif, directory)[0]
        for number in range(min(count, MAX_FIELDS)):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", exif, directory + 2 + 12 * number)
            if tag == ORIENTATION_TAG:
                value = struct.unpack_from(order + {BYTE: "B", LONG: "I"}.get(kind, "H"), exif, directory + 10 + 12 * number)[0]
                return value if kind in (BYTE, SHORT, LONG) and 1 <= value <= 8 else NORMAL
    except struct.error:  # the file ends before the field does
        pass
    return NORMAL


def decompress(data: bytes, max_bytes: int) -> bytes | None:
    """The decompressed data; None when they are damaged, or have more than `max_bytes`, of which no more is decompressed."""
    try:
        decompressor = zlib.decompressobj()
        text = decompressor.decompress(data, max_bytes + 1)
    except zlib.error:
        return None
    return text if len(text) <= max_bytes and decompressor.eof else None
