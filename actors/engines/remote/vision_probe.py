"""Whether the model of an OpenAI-compatible server reads images: no standard route says so, so two short requests find out."""

import base64
import io
import re
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

import httpx

from actors.engines.remote.openai_client import parsing_answer
from bus.errors import TemporaryError

PROBE_TEXT = "Hi"
PROBE_SIDE = 64
"""Pixels: more than the smallest image that a model takes."""
REFUSED_STATUSES = frozenset({400, 415, 422, 500, 501})
"""Statuses with which a server refuses an image; 500 is that of llama.cpp and of transformers."""
ABOUT_IMAGES = re.compile(r"image|vision|multi-?modal", re.IGNORECASE)
"""What the body of such an answer contains."""
VISION_SECONDS: dict[bool | None, float] = {True: inf, False: 300.0, None: 10.0}
"""How long an outcome is believed. A refusal may have another cause, such as a model that is being replaced."""

Complete = Callable[[dict[str, Any]], Awaitable[httpx.Response]]
"""Posts the body of a chat completion and returns the answer, whatever its status. Raises TemporaryError without an answer."""


async def reads_images(complete: Complete, model: str) -> bool | None:
    """None: the answers do not tell, because the server counts no tokens, or fails for another reason.

    A model without vision refuses the image, or its server leaves the image out of the prompt in silence: then the prompt
    has no more tokens than without it.
    """
    image = {"type": "image_url", "image_url": {"url": probe_image()}}
    try:
        without_image = await complete(probe_body(model, PROBE_TEXT))
        with_image = await complete(probe_body(model, [{"type": "text", "text": PROBE_TEXT}, image]))
        if without_image.status_code == 200 and with_image.status_code in REFUSED_STATUSES and ABOUT_IMAGES.search(with_image.text):
            return False
        counts = prompt_tokens(without_image), prompt_tokens(with_image)
    except TemporaryError:
        return None
    return counts[1] > counts[0] if all(counts) else None


def probe_body(model: str, content: str | list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}


def prompt_tokens(response: httpx.Response) -> int:
    """0: unknown. Raises TemporaryError for an answer that is no completion."""
    with parsing_answer():
        return int((response.json().get("usage") or {}).get("prompt_tokens") or 0) if response.status_code == 200 else 0


def probe_image() -> str:
    """The data URL of a grey PNG."""
    from PIL import Image

    with io.BytesIO() as file:
        Image.new("RGB", (PROBE_SIDE, PROBE_SIDE), "grey").save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
