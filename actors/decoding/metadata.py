"""Metadata of picture files, read for what a reader needs and no more: the orientation of EXIF, and a bounded decompression.

Metadata never make a picture unreadable: whatever cannot be read counts as absent.
"""

import struct
import zlib
from dataclasses import dataclass

ORIENTATION_TAG = 0x0112
SHORT, LONG, BYTE = 3, 4, 1
MAX_FIELDS = 1000
"""Fields of the first directory of EXIF that are looked at. Cameras write about twenty."""
EXIF_HEAD = b"Exif\0\0"
NORMAL = 1
MAX_PROFILE_BYTES = 4 << 20
MAX_DECOMPRESSED_BYTES = 16 << 20
"""All that is decompressed of the metadata of one file, kept or not."""
MAX_RATIO = 1032
"""Bytes that a byte of deflate becomes at most."""


def read_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8; 1 when EXIF says none, or one that is no number from 1 to 8.

    Some programs write the head `Exif` twice. Other fields are not read, so a damaged one does no harm.
    """
    exif = exif.removeprefix(EXIF_HEAD).removeprefix(EXIF_HEAD)
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


@dataclass
class Decompressor:
    """Decompresses parts of one file; `budget`: the bytes that all parts together may still have."""

    budget: int = MAX_DECOMPRESSED_BYTES

    def decompress(self, data: bytes, max_bytes: int) -> bytes | None:
        """The content; None when it is damaged, or has more than `max_bytes` or the budget, of which no more is decompressed."""
        limit = min(max_bytes, self.budget)
        decompressor = zlib.decompressobj()
        try:
            content = decompressor.decompress(data, limit + 1)
        except zlib.error:
            self.budget -= min(limit, MAX_RATIO * len(data))
            return None
        self.budget -= min(limit, len(content))
        return content if len(content) <= limit and decompressor.eof else None
