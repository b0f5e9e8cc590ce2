"""The chunks of a PNG: those that its pixels need, its text chunks, its orientation and its colour profile.

A damaged ancillary chunk is left out, as the PNG specification advises. So is what follows the end of the picture.
"""

import struct
import zlib
from collections.abc import Iterator

from actors.decoding.metadata import NORMAL, decompress, read_orientation
from actors.decoding.picture_file import UNREADABLE, Chunk, PictureFile
from actors.decoding.protocol import Refused

SIGNATURE_BYTES = 8
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT")
END = b"\0\0\0\0IEND\xaeB`\x82"
IPHONE_CHUNK = b"CgBI"
MAX_TEXT_CHARS = 1 << 20
"""Characters of all text chunks of a PNG that are read; the chunks beyond are left out. As JSON each may take twelve bytes."""
MAX_PROFILE_BYTES = 4 << 20


def read_png(data: bytes, label: str) -> PictureFile:
    """Raises Refused for a picture in the PNG variant of iPhone apps."""
    pixels, orientation, profile = [data[:SIGNATURE_BYTES]], NORMAL, None
    text: dict[str, Chunk] = {}
    remaining = MAX_TEXT_CHARS
    for kind, body, chunk in read_chunks(data):
        if kind == IPHONE_CHUNK:
            raise Refused(UNREADABLE, f"{label} is a PNG for iPhone apps (CgBI), which only they can read. Save it as a usual PNG.")
        if kind in PIXEL_CHUNKS or (kind == b"tRNS" and is_transparency(pixels, body)):
            pixels.append(chunk)
        elif kind == b"eXIf":
            orientation = read_orientation(body)
        elif kind == b"iCCP":
            profile = decompress(body[body.find(b"\0") + 2 :], MAX_PROFILE_BYTES)
        elif kind in TEXT_READERS and remaining and (entry := read_text(kind, body, remaining)):
            keyword, parts = entry
            text[keyword] = parts
            remaining -= len("".join(parts))
    whole = len(pixels[-1]) == declared_length(pixels[-1])
    return PictureFile(b"".join([*pixels, END] if whole else pixels), orientation, profile, text)


def declared_length(chunk: bytes) -> int:
    """The length of the whole chunk, as it says."""
    return 12 + int.from_bytes(chunk[:4])


def read_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, body and whole chunk, up to the end of the picture or of the file. A chunk that is cut short keeps what there is of it."""
    offset = SIGNATURE_BYTES
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if kind == b"IEND":
            return
        body = data[offset + 8 : offset + 8 + length]
        if not is_ancillary(kind) or (end <= len(data) and has_right_checksum(data, offset, length)):
            yield kind, body, data[offset:end]
        offset = end


def is_ancillary(kind: bytes) -> bool:
    return bool(kind[0] & 0x20)


def has_right_checksum(data: bytes, offset: int, length: int) -> bool:
    end = offset + 8 + length
    return zlib.crc32(memoryview(data)[offset + 4 : end]) == int.from_bytes(data[end : end + 4])


def is_transparency(pixels: list[bytes], body: bytes) -> bool:
    """Whether `body` is a tRNS chunk of the length that the colour type of the header asks for."""
    header = pixels[1] if len(pixels) > 1 else b""
    lengths = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}
    return len(header) > 17 and len(body) in lengths.get(header[17], ())


def read_text(kind: bytes, body: bytes, max_chars: int) -> tuple[str, Chunk] | None:
    """The keyword, and the text with its language; None for a chunk that is damaged, or has more than `max_chars` characters."""
    keyword, separator, rest = body.partition(b"\0")
    try:
        parts = TEXT_READERS[kind](rest, max_chars) if separator and keyword else None
    except (ValueError, IndexError):
        return None
    return (keyword.decode("latin-1"), parts) if parts and len("".join(parts)) <= max_chars else None


def read_plain_text(rest: bytes, _: int) -> Chunk | None:
    return rest.decode("latin-1"), "", ""


def read_compressed_text(rest: bytes, max_chars: int) -> Chunk | None:
    text = decompress(rest[1:], max_chars)
    return None if text is None else (text.decode("latin-1"), "", "")


def read_international_text(rest: bytes, max_chars: int) -> Chunk | None:
    """Raises ValueError for text that is not UTF-8, and IndexError for a chunk that is too short."""
    language, translated, text = rest[2:].split(b"\0", 2)
    body = decompress(text, 4 * max_chars) if rest[0] else text
    return None if body is None else (body.decode(), language.decode(), translated.decode())


TEXT_READERS = {b"tEXt": read_plain_text, b"zTXt": read_compressed_text, b"iTXt": read_international_text}
