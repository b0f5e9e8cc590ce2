"""Whether the model of an OpenAI-compatible server reads images: no standard route says so, so two short requests find out."""

import base64
import io
import re
from collections.abc import Awaitable, Callable
from typing import Any

from bus.errors import PermanentError, TemporaryError

PROBE_TEXT = "Hi"
PROBE_SIDE = 64
"""Pixels: more than the smallest image that a model takes."""
ABOUT_IMAGES = re.compile(r"image|vision|multi-?modal", re.IGNORECASE)
"""What a server that answers an image with an error of its own, instead of a 400, says in it."""

Complete = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Posts the body of a chat completion and returns the answer. Raises PermanentError when it is refused, TemporaryError."""


async def reads_images(complete: Complete, model: str) -> bool | None:
    """None: the answers do not tell, because the server counts no tokens. Raises PermanentError, TemporaryError when it answers no text.

    A model without vision refuses the image, or its server leaves the image out of the prompt in silence: then the prompt
    has no more tokens than without it.
    """
    image = {"type": "image_url", "image_url": {"url": probe_image()}}
    without_image = await complete(probe_body(model, PROBE_TEXT))
    try:
        with_image = await complete(probe_body(model, [{"type": "text", "text": PROBE_TEXT}, image]))
    except PermanentError:
        return False
    except TemporaryError as error:
        if ABOUT_IMAGES.search(str(error)):
            return False
        raise
    counts = prompt_tokens(without_image), prompt_tokens(with_image)
    return counts[1] > counts[0] if all(counts) else None


def probe_body(model: str, content: str | list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}


def prompt_tokens(completion: dict[str, Any]) -> int:
    return int((completion.get("usage") or {}).get("prompt_tokens") or 0)


def probe_image() -> str:
    """The data URL of a grey PNG."""
    from PIL import Image

    with io.BytesIO() as file:
        Image.new("RGB", (PROBE_SIDE, PROBE_SIDE), "grey").save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
