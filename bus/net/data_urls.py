"""Base64 as clients write it: plain or as a data URL, in either alphabet, with or without padding, in lines.

In messages it is cut to size before it is decoded, and decoded outside the event loop.
"""

import base64
from urllib.parse import unquote

from anyio import to_thread

from bus.errors import PermanentError

DATA_PREFIX = "data:"
MAX_PREFIX_CHARS = 200
"""Of `data:image/png;base64,`. The media type is optional and not believed."""
URL_SAFE = str.maketrans("-_", "+/")


async def decode_base64(text: str, *, max_bytes: int, broken_code: str, large_code: str, label: str) -> bytes:
    """The bytes. Raises PermanentError(`broken_code` · `large_code`); `label` begins the message."""
    if len(text) > 2 * max_bytes + 1024:  # base64 with line breaks needs 1.4 characters for a byte
        raise too_large(large_code, label, max_bytes)
    try:
        data = await to_thread.run_sync(parse_base64, text)
    except ValueError as error:
        raise PermanentError(broken_code, f"{label} is not valid base64: {error}") from error
    if len(data) > max_bytes:
        raise too_large(large_code, label, max_bytes)
    return data


def parse_base64(text: str) -> bytes:
    """The bytes of base64, or of a data URL of it. Raises ValueError for text that is neither.

    Blank characters are ignored, the alphabet may be that of URLs, percent escapes of a data URL are read, and the padding may be
    missing: none of them leaves a doubt about the bytes. Any other character is an error.
    """
    text = text.strip()
    if text[: len(DATA_PREFIX)].lower() == DATA_PREFIX:
        text = text[text.find(",", 0, MAX_PREFIX_CHARS) + 1 :]
        text = unquote(text) if "%" in text else text
    compact = "".join(text.split()).rstrip("=").translate(URL_SAFE)
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)


def too_large(code: str, label: str, max_bytes: int) -> PermanentError:
    return PermanentError(code, f"{label} has more than {max_bytes} bytes, the most that are read (MAX_UPLOAD_BYTES).")
