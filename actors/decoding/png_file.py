"""The chunks of a PNG: those that its pixels need, its text chunks, its orientation and its colour profile.

A damaged ancillary chunk is left out, as the PNG specification advises. So is what follows the end of the picture.
"""

import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Set

from actors.decoding.metadata import MAX_PROFILE_BYTES, NORMAL, Decompressor, read_orientation
from actors.decoding.picture_file import UNREADABLE, Chunk, PictureFile
from actors.decoding.protocol import Refused

SIGNATURE_BYTES = 8
HEAD_CHUNKS = (b"IHDR", b"PLTE", b"tRNS")
"""Those that a decoder needs before the pixels. The first of a kind counts, wherever it is."""
FRAME_CHUNKS = (b"acTL", b"fcTL", b"fdAT")
"""Those of an animation (APNG): the number of frames, the beginning of a frame, and its pixels."""
END = b"\0\0\0\0IEND\xaeB`\x82"
IPHONE_CHUNK = b"CgBI"
MAX_TEXT_CHARS = 1 << 20
"""Characters of all text chunks of a PNG that are read; the chunks beyond are left out. As JSON each may take twelve bytes."""
MAX_CHUNKS_OF_A_KIND = 10_000
"""Of METADATA_CHUNKS. Those beyond are left out."""


def read_png(data: bytes, label: str, *, animated: bool = False) -> PictureFile:
    """`animated`: with its frames. Raises Refused for a picture in the PNG variant of iPhone apps, and for contradicting frames."""
    pixel_chunks = (b"IDAT", *FRAME_CHUNKS) if animated else (b"IDAT",)
    head: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    orientation, profiles = NORMAL, list[bytes | None]()
    text: dict[str, Chunk] = {}
    remaining, decompressor, whole = MAX_TEXT_CHARS, Decompressor(), True
    wanted, counts = {*pixel_chunks, *METADATA_CHUNKS}, Counter[bytes]()
    for kind, body, chunk in read_chunks(data, wanted):
        if kind == IPHONE_CHUNK:
            raise Refused(UNREADABLE, f"{label} is a PNG for iPhone apps (CgBI), which only they can read. Save it as a usual PNG.")
        if kind in HEAD_CHUNKS or kind in pixel_chunks:
            whole = len(chunk) == declared_length(chunk)
        if kind in pixel_chunks:
            pixels.append(chunk)
        elif kind in HEAD_CHUNKS and (kind != b"tRNS" or is_transparency(head, body)):
            head.setdefault(kind, chunk)
        elif kind == b"eXIf":
            orientation = read_orientation(body)
        elif kind == b"iCCP" and not profiles:
            profiles.append(decompressor.decompress(body[body.find(b"\0") + 2 :], MAX_PROFILE_BYTES))
        elif kind in TEXT_READERS:
            if entry := read_text(kind, body, remaining, decompressor):
                keyword, text[keyword] = entry
                remaining -= len("".join(text[keyword]))
            if not remaining:
                wanted.difference_update(TEXT_READERS)
        if kind in METADATA_CHUNKS:
            counts[kind] += 1
            if counts[kind] == MAX_CHUNKS_OF_A_KIND:
                wanted.discard(kind)
    check_frames(pixels, label)
    parts = [data[:SIGNATURE_BYTES], *(head[kind] for kind in HEAD_CHUNKS if kind in head), *pixels, END if whole else b""]
    return PictureFile(b"".join(parts), orientation, profiles[0] if profiles else None, text)


def check_frames(chunks: list[bytes], label: str) -> None:
    """Raises Refused unless one acTL before the pixels has the right number of frames: viewers would differ in what they show."""
    kinds = [chunk[4:8] for chunk in chunks]
    declared = [(place, int.from_bytes(chunk[8:12])) for place, chunk in enumerate(chunks) if chunk[4:8] == b"acTL"]
    frames = kinds.count(b"fcTL")
    if frames and (len(declared) != 1 or declared[0][1] != frames or b"IDAT" in kinds[: declared[0][0]]):
        raise Refused(UNREADABLE, f"{label} is an animated PNG of {frames} frames that declares another number of them. Save it again.")


def declared_length(chunk: bytes) -> int:
    """The length of the whole chunk, as it says."""
    return 12 + int.from_bytes(chunk[:4])


def read_chunks(data: bytes, wanted: Set[bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, body and whole chunk, up to the end of the picture or of the file. A chunk that is cut short keeps what there is of it.

    `wanted`: the ancillary kinds that are not passed over; it may change between two chunks.
    """
    offset = SIGNATURE_BYTES
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if kind == b"IEND":
            return
        if not is_ancillary(kind) or (kind in wanted and end <= len(data) and has_right_checksum(data, offset, length)):
            yield kind, data[offset + 8 : offset + 8 + length], data[offset:end]
        offset = end


def is_ancillary(kind: bytes) -> bool:
    return bool(kind[0] & 0x20)


def has_right_checksum(data: bytes, offset: int, length: int) -> bool:
    end = offset + 8 + length
    return zlib.crc32(memoryview(data)[offset + 4 : end]) == int.from_bytes(data[end : end + 4])


def is_transparency(head: dict[bytes, bytes], body: bytes) -> bool:
    """Whether `body` is a tRNS chunk of the length that the colour type of the header asks for."""
    header = head.get(b"IHDR", b"")
    lengths = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}
    return len(header) > 17 and len(body) in lengths.get(header[17], ())


def read_text(kind: bytes, body: bytes, max_chars: int, decompressor: Decompressor) -> tuple[str, Chunk] | None:
    """The keyword, and the text with its language; None for a chunk that is damaged, or has more than `max_chars` characters."""
    keyword, separator, rest = body.partition(b"\0")
    try:
        parts = TEXT_READERS[kind](rest, max_chars, decompressor) if separator and keyword else None
    except (ValueError, IndexError):
        return None
    return (keyword.decode("latin-1"), parts) if parts and len("".join(parts)) <= max_chars else None


def read_plain_text(rest: bytes, _: int, __: Decompressor) -> Chunk | None:
    return rest.decode("latin-1"), "", ""


def read_compressed_text(rest: bytes, max_chars: int, decompressor: Decompressor) -> Chunk | None:
    text = decompressor.decompress(rest[1:], max_chars)
    return None if text is None else (text.decode("latin-1"), "", "")


def read_international_text(rest: bytes, max_chars: int, decompressor: Decompressor) -> Chunk | None:
    """Raises ValueError for text that is not UTF-8, and IndexError for a chunk that is too short."""
    language, translated, text = rest[2:].split(b"\0", 2)
    body = decompressor.decompress(text, 4 * max_chars) if rest[0] else text
    return None if body is None else (body.decode(), language.decode(), translated.decode())


TEXT_READERS = {b"tEXt": read_plain_text, b"zTXt": read_compressed_text, b"iTXt": read_international_text}
METADATA_CHUNKS = (b"tRNS", b"eXIf", b"iCCP", *TEXT_READERS)
