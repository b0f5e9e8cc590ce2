"""A model server on a real socket, in the OpenAI form. What it says is decided by the test; what it heard is kept."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.listening_backend import hear

IMAGE_VERDICT = {
    "is_valid": True,
    "image_quality_ok": True,
    "relevance_score": 0.8,
    "analysis": "빵이 잘 보인다",
    "issues": [],
    "recommendations": ["더 밝게"],
    "font_recommendation": {
        "font_style": "bold",
        "font_name": "Nanum Gothic",
        "font_size_category": "large",
        "font_color_hex": "ffffff",
        "reasoning": "dark background",
    },
}
AD_VERDICT = {
    "on_brief": True,
    "occlusion": False,
    "contrast_ok": True,
    "cta_present": True,
    "analysis": "good",
    "issues": [],
}

Said = str | dict[str, Any] | int
"""Text, a verdict, or a status."""


def verdict_for(body: dict[str, Any]) -> Said:
    """The verdict whose schema is asked for."""
    asked = json.dumps(body.get("response_format", {}))
    return IMAGE_VERDICT if "is_valid" in asked else AD_VERDICT if "on_brief" in asked else "Chain-of-Thought: 네.\n\nAnswer: 물을 드세요."


@dataclass
class ModelServer:
    """Each question heard adds one to `arrived`; with `hold` no answer is given until it is set."""

    say: Callable[[dict[str, Any]], Said] = verdict_for
    finish: str = "stop"
    questions: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    hold: asyncio.Event | None = None
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                heard = await hear(reader)
                self.keys.add(heard.headers.get("authorization", ""))
                status, body = await self._answer(heard.path, heard.raw)
                data = json.dumps(body).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, asked: bytes) -> tuple[int, Any]:
        if path.endswith("/models"):
            return 200, {"data": [{"id": "first"}, {"id": "second"}]}
        question = json.loads(asked)
        self.questions.append(question)
        self.arrived.release()
        if self.hold:
            await self.hold.wait()
        said = self.say(question)
        if isinstance(said, int):
            return said, {"error": {"message": "response_format is not supported" if said == 400 else "no"}}
        text = said if isinstance(said, str) else json.dumps(said)
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": self.finish}
        return 200, {"model": question["model"], "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}


@asynccontextmanager
async def open_model_server() -> AsyncIterator[ModelServer]:
    model = ModelServer()
    server = await asyncio.start_server(model.serve, "127.0.0.1", 0)
    model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield model
    finally:
        server.close()
        if model.hold:
            model.hold.set()
