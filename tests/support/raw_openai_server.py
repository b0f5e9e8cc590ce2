"""An OpenAI-compatible server on a real socket whose answers are bytes: the tests decide status, headers, and where a stream is cut."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.webhook_backend import read_request

EVENT_STREAM = {"Content-Type": "text/event-stream"}
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class RawAnswer:
    """`pieces`: sent one by one in chunked encoding, in place of `body`."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] | None = None


Respond = Callable[[dict[str, Any]], RawAnswer]


@dataclass
class RawOpenAiServer:
    """`respond`: to the body of a completion, on routes that end with `route`. `models`: the answer of the route `models`.

    `requests`: the bodies, in order.
    """

    respond: Respond
    models: RawAnswer = field(default_factory=lambda: RawAnswer(body={"object": "list", "data": [{"id": "m"}]}))
    requests: list[dict[str, Any]] = field(default_factory=list)
    route: str = "/completions"
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read_request(reader)
                if request.path.endswith("/models"):
                    answer = self.models
                elif request.path.endswith(self.route):
                    self.requests.append(json.loads(request.body_bytes))
                    answer = self.respond(self.requests[-1])
                else:
                    answer = RawAnswer(404)
                await send(writer, answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def send(writer: asyncio.StreamWriter, answer: RawAnswer) -> None:
    body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body, ensure_ascii=False).encode(errors="surrogatepass")
    length = {"Content-Length": str(len(body))} if answer.pieces is None else {"Transfer-Encoding": "chunked"}
    headers = {"Content-Type": "application/json"} | answer.headers | length
    lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    if answer.pieces is None:
        writer.write(body)
    else:
        for piece in answer.pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
    await writer.drain()


@asynccontextmanager
async def open_raw_server(respond: Respond) -> AsyncIterator[RawOpenAiServer]:
    fake = RawOpenAiServer(respond)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield fake
    finally:
        server.close()


def completion(content: Any = "hello", finish: Any = "stop", **message: Any) -> RawAnswer:
    """A whole answer. `message`: further fields of its message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content} | message, "finish_reason": finish}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return RawAnswer(body={"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def chunk(content: Any = None, finish: Any = None, **delta: Any) -> dict[str, Any]:
    """The event of a stream. `delta`: further fields of its delta."""
    fields = ({} if content is None else {"content": content}) | delta
    return {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def event(body: dict[str, Any], *, ascii_only: bool = False) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=ascii_only).encode(errors="surrogatepass") + b"\n\n"


def stream(*pieces: bytes, headers: dict[str, str] | None = None) -> RawAnswer:
    return RawAnswer(headers=EVENT_STREAM if headers is None else headers, pieces=pieces)


def events(*bodies: dict[str, Any], done: bool = True) -> RawAnswer:
    """A stream of these events, and `[DONE]`."""
    return stream(*map(event, bodies), *([b"data: [DONE]\n\n"] if done else []))


def whole_or_stream(request: dict[str, Any], text: str = "hello") -> RawAnswer:
    """A sound answer, as the request wants it."""
    return events(chunk(text), chunk(finish="stop")) if request.get("stream") else completion(text)


def error(message: str, status: int = 400, **fields: Any) -> RawAnswer:
    """A refusal in OpenAI's form."""
    return RawAnswer(status, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None} | fields})
