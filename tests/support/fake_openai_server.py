"""An OpenAI-compatible server on a real socket, which refuses what OpenAI refuses. The test decides its responses.

The server records the requests.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.webhook_backend import read_request

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

TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
FakeResponse = str | dict[str, Any] | int
"""A text, a verdict, or an HTTP status."""


def default_response(request: dict[str, Any]) -> FakeResponse:
    """The verdict whose schema is requested, else a text."""
    schema = json.dumps(request.get("response_format", {}))
    return (
        IMAGE_VERDICT if "is_valid" in schema else AD_VERDICT if "on_brief" in schema else "Chain-of-Thought: 네.\n\nAnswer: 물을 드세요."
    )


def refusal(request: dict[str, Any]) -> str | None:
    """Why OpenAI's server refuses a chat; None: it does not."""
    tools, called = request.get("tools", []), set[str]()
    names = [tool["function"]["name"] for tool in tools]
    choice = request.get("tool_choice")
    for message in request["messages"]:
        called |= {call["id"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and message.get("tool_call_id") not in called:
            return "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
    if wrong := next((name for name in names if not TOOL_NAME.fullmatch(name)), None):
        return f"Invalid 'tools[0].function.name': {wrong!r} does not match the expected pattern."
    if ("tool_choice" in request or "parallel_tool_calls" in request) and not tools:
        return "'tool_choice' and 'parallel_tool_calls' are only allowed when 'tools' are specified."
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        return "Tool choice 'function' not found in 'tools' parameter."
    if "top_logprobs" in request and not request.get("logprobs"):
        return "'logprobs' must be true when 'top_logprobs' is specified."
    return None


def completion_of(request: dict[str, Any], text: str, finish_reason: str) -> dict[str, Any]:
    """A whole answer; with the call that the request demands, and with log probabilities where it asks for them."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    choice = request.get("tool_choice")
    if choice == "required" or isinstance(choice, dict):
        name = choice["function"]["name"] if isinstance(choice, dict) else request["tools"][0]["function"]["name"]
        call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": "{}"}}
        message, finish_reason = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    logprobs = {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]} if request.get("logprobs") else None
    return {
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5},
    }


@dataclass
class FakeOpenAiServer:
    """Each request releases `request_semaphore`; with a `release_event` no response is given until it is set.

    `health_status`: of `/health`. `models`: the names of `/v1/models`, `models_status`: its status.
    """

    respond: Callable[[dict[str, Any]], FakeResponse] = default_response
    finish_reason: str = "stop"
    health_status: int = 200
    models_status: int = 200
    models: tuple[str, ...] = ("first", "second")
    requests: list[dict[str, Any]] = field(default_factory=list)
    authorization_headers: set[str] = field(default_factory=set)
    release_event: asyncio.Event | None = None
    request_semaphore: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read_request(reader)
                self.authorization_headers.add(request.headers.get("authorization", ""))
                status, body = await self._respond(request.path, request.body_bytes)
                data = json.dumps(body).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _respond(self, path: str, request_body: bytes) -> tuple[int, Any]:
        if path == "/health":
            return self.health_status, {}
        if path.endswith("/models"):
            return self.models_status, {"data": [{"id": name} for name in self.models]}
        if not path.endswith("/chat/completions"):
            return 404, {"error": {"message": "no such route"}}
        request = json.loads(request_body)
        self.requests.append(request)
        self.request_semaphore.release()
        if self.release_event:
            await self.release_event.wait()
        if reason := refusal(request):
            return 400, {"error": {"message": reason, "type": "invalid_request_error", "param": None, "code": None}}
        response = self.respond(request)
        if isinstance(response, int):
            return response, {"error": {"message": "response_format is not supported" if response == 400 else "no"}}
        text = response if isinstance(response, str) else json.dumps(response)
        return 200, completion_of(request, text, self.finish_reason)


@asynccontextmanager
async def open_fake_openai_server() -> AsyncIterator[FakeOpenAiServer]:
    fake = FakeOpenAiServer()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield fake
    finally:
        server.close()
        if fake.release_event:
            fake.release_event.set()
