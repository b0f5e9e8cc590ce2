"""How the text engine finds out whether a server's model reads images."""

import asyncio
from typing import Any

import httpx
import pytest

from actors.engines.remote.openai_text import OpenAiTextEngine
from actors.engines.remote.vision_probe import reads_images
from bus.errors import PermanentError, TemporaryError

Answer = int | Exception
"""The number of tokens of the prompt, or the error."""


@pytest.mark.parametrize(
    ("to_text", "to_image", "expected"),
    [
        (9, 34, True),
        (9, 9, False),
        (9, PermanentError("server-refused", "400: tiny is not a multimodal model"), False),
        (9, TemporaryError("500: image input is not supported", code="server-failed"), False),
        (0, 0, None),
    ],
)
async def test_model_reads_images_if_they_make_the_prompt_longer(to_text: Answer, to_image: Answer, expected: bool | None) -> None:
    assert await reads_images(server(to_text, to_image), "tiny") is expected


@pytest.mark.parametrize(
    ("to_text", "to_image"),
    [(PermanentError("server-refused", "401"), 9), (9, TemporaryError("503: busy", code="server-failed")), (TemporaryError("image"), 9)],
)
async def test_failing_server_tells_nothing(to_text: Answer, to_image: Answer) -> None:
    with pytest.raises((PermanentError, TemporaryError)):
        await reads_images(server(to_text, to_image), "tiny")


def server(to_text: Answer, to_image: Answer) -> Any:
    async def complete(body: dict[str, Any]) -> dict[str, Any]:
        answer = to_text if isinstance(body["messages"][0]["content"], str) else to_image
        if isinstance(answer, Exception):
            raise answer
        return {"usage": {"prompt_tokens": answer}} if answer else {}

    return complete


async def test_status_does_not_wait_for_the_probe_and_a_model_is_probed_once() -> None:
    completions: list[bytes] = []
    is_released = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "tiny", "max_model_len": 64}]})
        if request.url.path.endswith("/metrics"):
            return httpx.Response(404)
        completions.append(request.content)
        await is_released.wait()
        return httpx.Response(200, json={"usage": {"prompt_tokens": 9}})

    async with httpx.AsyncClient(base_url="http://server/v1/", transport=httpx.MockTransport(answer)) as http:
        engine = OpenAiTextEngine(http, None, 1.0)
        first, second = await engine.state(), await engine.state()
        is_released.set()
        assert await engine.vision() is False
        assert ((await engine.state()).vision, first.vision, second.vision, len(completions)) == (False, None, None, 2)
        await engine.close()
