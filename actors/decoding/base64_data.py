"""Base64 in messages, with or without a `data:` prefix: cut to size before it is decoded, and decoded outside the event loop."""

import base64
import binascii

from anyio import to_thread

from bus.errors import PermanentError

DATA_PREFIX = "data:"
MAX_PREFIX_CHARS = 200
"""Of `data:image/png;base64,`."""


async def decode_base64(text: str, *, max_bytes: int, broken_code: str, large_code: str, label: str) -> bytes:
    """The bytes. Raises PermanentError(`broken_code` · `large_code`); `label` begins the message."""
    if len(text) > 2 * max_bytes + 1024:  # base64 with line breaks needs 1.4 characters for a byte
        raise too_large(large_code, label, max_bytes)
    try:
        data = await to_thread.run_sync(_decode, text)
    except (binascii.Error, ValueError) as error:
        raise PermanentError(broken_code, f"{label} is not valid base64: {error}") from error
    if len(data) > max_bytes:
        raise too_large(large_code, label, max_bytes)
    return data


def _decode(text: str) -> bytes:
    """Blank characters are ignored, any other foreign character is an error."""
    text = text.strip()
    if text[: len(DATA_PREFIX)].lower() == DATA_PREFIX:
        text = text[text.find(",", 0, MAX_PREFIX_CHARS) + 1 :]
    return base64.b64decode("".join(text.split()), validate=True)


def too_large(code: str, label: str, max_bytes: int) -> PermanentError:
    return PermanentError(code, f"{label} has more than {max_bytes} bytes, the most that are read (MAX_UPLOAD_BYTES).")
