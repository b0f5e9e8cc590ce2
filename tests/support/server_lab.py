"""The engines of the steps text and consult, on a server whose answers the test decides."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx

from actors.engines.language.requests import GenerationChunk, GenerationRequest
from actors.engines.remote.openai_text import OpenAiTextEngine
from actors.engines.remote.openai_vlm import OpenAiVlm
from actors.engines.remote.parameters import ServerParameters, parse_profile
from tests.support.raw_openai_server import RawAnswer, RawOpenAiServer, Respond, open_raw_server, whole_or_stream


class Lab:
    """A server, and an engine that asks it. `profile`: the setting TEXT_SERVER_PARAMETERS."""

    def __init__(self, server: RawOpenAiServer, http: httpx.AsyncClient, model: str | None, profile: str, patience: float) -> None:
        self.server, self.http = server, http
        self.parameters = ServerParameters(parse_profile(profile))
        self.engine = OpenAiTextEngine(http, model, patience, parameters=self.parameters)
        self.vlm = OpenAiVlm(http, model or "m", ServerParameters(parse_profile(profile)))

    async def chunks(self, content: str = "hi", **options: Any) -> list[GenerationChunk]:
        fields: dict[str, Any] = {"max_tokens": 64, "temperature": 0.7, "top_p": 0.9} | options
        request = GenerationRequest(**({"messages": [{"role": "user", "content": content}]} | fields))
        return [chunk async for chunk in self.engine.generate(request, None)]

    async def text(self, **options: Any) -> str:
        return "".join(chunk.text for chunk in await self.chunks(**options))


@asynccontextmanager
async def lab(respond: Respond, model: str | None = "m", profile: str = "", patience: float = 5.0) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_raw_server(respond))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"{server.url}/"))
        yield Lab(server, http, model, profile, patience)


def refusing(*names: str, answer: Callable[[str], RawAnswer]) -> Respond:
    """A server that refuses these parameters, the first of them in its answer, and else gives a sound answer."""

    def respond(request: dict[str, Any]) -> RawAnswer:
        unknown = [name for name in names if name in request]
        return answer(unknown[0]) if unknown else whole_or_stream(request)

    return respond
