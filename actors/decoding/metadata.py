"""Metadata of picture files, read for what a reader needs and no more: two fields of EXIF, and a bounded decompression.

Metadata never make a picture unreadable: whatever cannot be read counts as absent.
"""

import json
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass

ORIENTATION_TAG, EXIF_DIRECTORY_TAG, USER_COMMENT_TAG = 0x0112, 0x8769, 0x9286
ASCII_COMMENT = b"ASCII\0\0\0"
MAX_COMMENT_BYTES = 64 << 10
SHORT, LONG, BYTE = 3, 4, 1
MAX_FIELDS = 1000
"""Fields of a directory of EXIF that are looked at. Cameras write about twenty."""
EXIF_HEAD = b"Exif\0\0"
NORMAL = 1
MAX_PROFILE_BYTES = 4 << 20
MAX_DECOMPRESSED_BYTES = 16 << 20
"""All that is decompressed of the metadata of one file, kept or not."""
MAX_RATIO = 1032
"""Bytes that a byte of deflate becomes at most."""


def read_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8; 1 when EXIF says none, or one that is no number from 1 to 8. A damaged field does no harm to another."""
    with suppress(struct.error):  # the file ends before the field does
        exif, order = read_head(exif)
        if order and (field := find_field(exif, order, struct.unpack_from(f"{order}I", exif, 4)[0], ORIENTATION_TAG)):
            value = struct.unpack_from(order + {BYTE: "B", LONG: "I"}.get(field.kind, "H"), exif, field.place)[0]
            return value if field.kind in (BYTE, SHORT, LONG) and 1 <= value <= 8 else NORMAL
    return NORMAL


def read_comment(exif: bytes) -> dict[str, str]:
    """The UserComment that says how a picture was made: a JSON object of texts, in ASCII, as the image step writes it; else empty."""
    comment = b""
    with suppress(struct.error):
        exif, order = read_head(exif)
        first = struct.unpack_from(f"{order}I", exif, 4)[0] if order else 0
        if first and (pointer := find_field(exif, order, first, EXIF_DIRECTORY_TAG)):
            directory = struct.unpack_from(f"{order}I", exif, pointer.place)[0]
            if (field := find_field(exif, order, directory, USER_COMMENT_TAG)) and field.count <= MAX_COMMENT_BYTES:
                offset = struct.unpack_from(f"{order}I", exif, field.place)[0]
                comment = exif[offset : offset + field.count]
    return parse_comment(comment)


def parse_comment(comment: bytes) -> dict[str, str]:
    if not comment.startswith(ASCII_COMMENT):
        return {}
    try:
        texts = json.loads(comment.removeprefix(ASCII_COMMENT).decode("ascii"))
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            return {}
        "".join([*texts, *texts.values()]).encode()  # half of a surrogate pair could not be written again
    except (ValueError, RecursionError):
        return {}
    return texts


@dataclass(frozen=True)
class Field:
    """A field of EXIF: its type, how many values of it there are, and the place of the value, or of its offset."""

    kind: int
    count: int
    place: int


def read_head(exif: bytes) -> tuple[bytes, str]:
    """EXIF without its head, which some programs write twice, and its byte order for `struct`; no order: it is no EXIF."""
    exif = exif.removeprefix(EXIF_HEAD).removeprefix(EXIF_HEAD)
    return exif, {b"II": "<", b"MM": ">"}.get(exif[:2], "")


def find_field(exif: bytes, order: str, directory: int, wanted: int) -> Field | None:
    """The first field with the tag in the directory at an offset. Raises struct.error where the data end."""
    count = struct.unpack_from(f"{order}H", exif, directory)[0]
    for number in range(min(count, MAX_FIELDS)):
        place = directory + 2 + 12 * number
        tag, kind, values = struct.unpack_from(f"{order}HHI", exif, place)
        if tag == wanted:
            return Field(kind, values, place + 8)
    return None


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
