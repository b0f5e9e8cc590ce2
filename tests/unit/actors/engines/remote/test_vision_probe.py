"""How the text engine finds out whether a server's model reads images."""

import asyncio
from typing import Any

import httpx
import pytest

from actors.engines.remote.openai_text import OpenAiTextEngine
from actors.engines.remote.vision_probe import reads_images
from bus.errors import TemporaryError

Answer = int | httpx.Response | Exception
"""The number of tokens of the prompt, another answer, or the error."""


def refusal(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message}})


@pytest.mark.parametrize(
    ("to_text", "to_image", "expected"),
    [
        (9, 34, True),
        (9, 9, False),
        (9, refusal(400, "tiny is not a multimodal model"), False),
        (9, refusal(500, "image input is not supported"), False),
        (0, 0, None),
    ],
)
async def test_model_reads_images_if_they_make_the_prompt_longer(to_text: Answer, to_image: Answer, expected: bool | None) -> None:
    assert await reads_images(server(to_text, to_image), "tiny") is expected


@pytest.mark.parametrize(
    ("to_text", "to_image"),
    [
        (refusal(401, "no image for you"), 9),
        (9, refusal(401, "no image for you")),
        (9, refusal(404, "the vision model is being swapped")),
        (9, refusal(503, "the vision model is loading")),
        (9, refusal(400, "busy")),
        (refusal(400, "image"), refusal(400, "image")),
        (9, httpx.Response(200, text="<html>a page</html>")),
        (9, TemporaryError("http://vision-server did not answer", code="server-away")),
        (TemporaryError("image"), 9),
    ],
)
async def test_failing_server_tells_nothing(to_text: Answer, to_image: Answer) -> None:
    assert await reads_images(server(to_text, to_image), "tiny") is None


def server(to_text: Answer, to_image: Answer) -> Any:
    async def complete(body: dict[str, Any]) -> httpx.Response:
        answer = to_text if isinstance(body["messages"][0]["content"], str) else to_image
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(200, json={"usage": {"prompt_tokens": answer}}) if isinstance(answer, int) else answer

    return complete


async def test_passing_error_is_not_remembered_as_a_model_without_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is a refusal, for longer than its time: the server may serve another model under the same name by then."""
    answers: list[Answer] = [TemporaryError("away"), refusal(400, "no images"), 34]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "tiny"}]})
        if b"image_url" not in request.content:
            return httpx.Response(200, json={"usage": {"prompt_tokens": 9}})
        if isinstance(reply := answers.pop(0), Exception):
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"usage": {"prompt_tokens": reply}}) if isinstance(reply, int) else reply

    now = 1000.0
    monkeypatch.setattr("actors.engines.remote.openai_text.time.monotonic", lambda: now)
    async with httpx.AsyncClient(base_url="http://vision-server/v1/", transport=httpx.MockTransport(answer)) as http:
        engine = OpenAiTextEngine(http, None, 1.0)
        assert await engine.vision() is None
        now += 11
        assert [await engine.vision(), await engine.vision()] == [False, False]
        now += 301
        assert [await engine.vision(), await engine.vision()] == [True, True]


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
