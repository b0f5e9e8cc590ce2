"""The segments of a JPEG: those that its pixels need, its orientation, its colour profile and its comment.

Any other application segment is left out, with what follows the end of the picture: the second picture of a phone, or its video.
"""

import re
import struct
from collections.abc import Iterator
from itertools import islice

from actors.decoding.metadata import EXIF_HEAD, MAX_PROFILE_BYTES, read_comment, read_orientation
from actors.decoding.picture_file import TOO_COSTLY, UNREADABLE, PictureFile, plain_chunks
from actors.decoding.protocol import Refused

START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xD8, 0xD9, 0xDA
EXIF, PROFILE, ADOBE, JFIF, COMMENT = 0xE1, 0xE2, 0xEE, 0xE0, 0xFE
APPLICATION_MARKERS = range(0xE0, 0xF0)
PICTURE_MARKERS = frozenset((*range(0xC0, 0xD0), *range(0xD9, 0xE0)))
"""Markers of everything but metadata."""
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL_FRAMES = frozenset((0xC0, 0xC1))
QUANTIZATION_TABLE, RESTART_INTERVAL = 0xDB, 0xDD
END = b"\xff\xd9"
OTHER_ENDINGS = tuple(byte * 4096 for byte in (b"\x55", b"\xaa", b"\x33", b"\xcc"))
"""More than the largest block of 16×16 pixels has. One table of codes may read some of them as `no change`, but not all."""
PROFILE_HEAD = b"ICC_PROFILE\0"
MAX_SEGMENTS = 10_000
MAX_SCANS = 100
"""Scans of a JPEG. Encoders write about ten; each scan costs a pass over all pixels."""
NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""In the compressed pixels: 00 after FF is a stuffed byte, D0 to D7 are restart markers, and FF is a fill byte."""
Segment = tuple[int, bytes, bytes]
"""The marker, the segment's body, and the whole segment with the compressed pixels that follow it."""


def read_jpeg(data: bytes, label: str) -> PictureFile:
    """Raises Refused for a file with too many scans or segments, and for one without its end that may lack more."""
    segments = list(islice(read_segments(data), MAX_SEGMENTS))
    if not has_pixels(segments):  # the length of a metadata segment is wrong, and covers what follows it
        segments = list(islice(read_segments(data, skip_metadata=True), MAX_SEGMENTS))
    scans = sum(marker == START_OF_SCAN for marker, _, _ in segments)
    if scans > MAX_SCANS or len(segments) == MAX_SEGMENTS:
        message = (
            f"{label} is a JPEG of {scans} scans and {len(segments)} segments; at most {MAX_SCANS} and {MAX_SEGMENTS - 1} are decoded."
        )
        raise Refused(TOO_COSTLY, f"{message} Save it again as a usual JPEG.")
    exif = next((body for marker, body, _ in segments if marker == EXIF and body.startswith(EXIF_HEAD)), b"")
    kept = [whole for marker, body, whole in segments if is_needed(marker, body)]
    ended = bool(segments) and segments[-1][0] == END_OF_IMAGE
    if not ended and not shows_missing_pixels(segments):
        message = f"{label} is a JPEG that is cut short ({len(data)} bytes): its end marker is missing, and perhaps more. Send it again."
        raise Refused(UNREADABLE, message)
    pixels, text = b"".join([data[:2], *kept, END]), plain_chunks(read_comment(exif))
    return PictureFile(pixels, read_orientation(exif), join_profile(segments), text, ended)


def read_segments(data: bytes, *, skip_metadata: bool = False) -> Iterator[Segment]:
    """Up to the end of the picture or of the file. With `skip_metadata`, application segments are searched through, not believed."""
    offset = 2
    while found := NEXT_MARKER.search(data, offset):
        marker, offset = data[found.start() + 1], found.end()
        if marker == END_OF_IMAGE:
            yield marker, b"", b""
        if marker in (END_OF_IMAGE, START_OF_IMAGE) or offset + 2 > len(data):  # another start is that of a small preview
            return
        if skip_metadata and marker not in PICTURE_MARKERS:
            continue
        end = offset + struct.unpack_from(">H", data, offset)[0]
        body = data[offset + 2 : end]
        if marker == START_OF_SCAN:
            following = NEXT_MARKER.search(data, end)
            end = following.start() if following else len(data)
        yield marker, body, data[found.start() : end]
        offset = end


def with_other_endings(data: bytes) -> Iterator[bytes]:
    """The file of `read_jpeg` with more data before its end. If pixels are missing, at least one of these files has other pixels.

    An FF at the cut would make a marker of them, and is left out.
    """
    for more in OTHER_ENDINGS:
        yield data[: -len(END)].rstrip(b"\xff") + more + END


def shows_missing_pixels(segments: list[Segment]) -> bool:
    """Whether `with_other_endings` find all missing pixels: those of a sequential JPEG of a single scan without restart markers."""
    bodies = {marker: body for marker, body, _ in segments}
    frames = [marker for marker in bodies if marker in FRAME_MARKERS]
    if len(frames) != 1 or frames[0] not in SEQUENTIAL_FRAMES or RESTART_INTERVAL in bodies:
        return False
    components = bodies[frames[0]][5:6]
    return [body[:1] for marker, body, _ in segments if marker == START_OF_SCAN] == [components]


def has_pixels(segments: list[Segment]) -> bool:
    markers = {marker for marker, _, _ in segments}
    return START_OF_SCAN in markers and QUANTIZATION_TABLE in markers and bool(FRAME_MARKERS & markers)


def is_needed(marker: int, body: bytes) -> bool:
    """Whether a decoder needs it: all but application segments and comments. Of those, two say how the colours are encoded."""
    if marker in (JFIF, ADOBE):
        return body.startswith((b"JFIF\0", b"Adobe"))
    return marker not in APPLICATION_MARKERS and marker not in (COMMENT, END_OF_IMAGE)


def join_profile(segments: list[Segment]) -> bytes | None:
    """The colour profile, which may be in several segments; None when there is none, or a part is missing."""
    parts = {
        body[len(PROFILE_HEAD)]: body
        for marker, body, _ in segments
        if marker == PROFILE and body.startswith(PROFILE_HEAD) and len(body) > len(PROFILE_HEAD) + 2
    }
    if not parts or sorted(parts) != list(range(1, next(iter(parts.values()))[len(PROFILE_HEAD) + 1] + 1)):
        return None
    return b"".join(parts[number][len(PROFILE_HEAD) + 2 :] for number in sorted(parts))[:MAX_PROFILE_BYTES]
