"""The doctor's checks of the model servers: each OpenAI-compatible server that a step is configured for answers and serves its model."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
from pydantic import SecretStr

from actors.llm.settings import TextSettings
from actors.vision.settings import VlmSettings
from bus.masking import mask_text
from bus.net.addresses import redact_uri
from bus.net.ssrf import describe_http_error
from bus.observability.probes import PROBE_TIMEOUT_SECONDS, describe_error
from ops.commands.doctor_host import Check
from ops.registry import NEEDS_MODELS

VISION_STEPS = sorted(NEEDS_MODELS - {"image"})
MAX_ANSWER_BYTES = 1 << 20
NAMES_SHOWN = 10
WITHOUT_HEALTH_ROUTE = frozenset({401, 403, 404, 405, 501})
"""Statuses of `/health` at servers that have no such route, or none without a key: then the list of models decides."""
WITHOUT_LIST = frozenset({404, 405, 501})
"""Statuses of the list of models at servers that have none; a model that the settings name is asked all the same."""


@dataclass(frozen=True)
class ModelServer:
    """The server of one step. `url`: with `/v1`; None where the engine needs one. `is_used`: whether the step's engine calls it."""

    step: str
    url: str | None
    api_key: SecretStr | None
    model: str | None
    is_used: bool
    url_setting: str
    model_setting: str
    engine_setting: str


@dataclass(frozen=True)
class ServerAnswer:
    """`problem`: why the server cannot be used; None where it answers. `unlisted`: it answers, and has no list of models."""

    problem: str | None
    models: tuple[str, ...] = ()
    unlisted: bool = False


def configured_servers() -> Iterator[ModelServer]:
    """The server of each step that has one, or whose engine is set to one and lacks it."""
    text = TextSettings()
    if text.server_url or text.engine == "openai":
        is_used = text.engine in ("auto", "openai")
        yield ModelServer("text", text.server_url, text.api_key, text.model, is_used, "VLLM_SERVER_URL", "VLLM_MODEL", "TEXT_ENGINE")
    for step in VISION_STEPS:
        vision = VlmSettings.for_step(step)
        if vision.base_url or vision.engine == "openai":
            is_used = vision.engine == "openai"
            yield ModelServer(step, vision.base_url, vision.api_key, vision.model, is_used, "VLM_BASE_URL", "VLM_MODEL", "VLM_ENGINE")


async def check_model_servers() -> list[Check]:
    """One check for each step; a server that several steps use is asked once."""
    servers = list(configured_servers())
    addresses = list({(server.url, server.api_key): None for server in servers if server.url})
    answers = await asyncio.gather(*(ask_server(url, key) for url, key in addresses))
    answer_of = dict(zip(addresses, answers, strict=True))
    return [describe_server(server, answer_of[server.url, server.api_key] if server.url else None) for server in servers]


def describe_server(server: ModelServer, answer: ServerAnswer | None) -> Check:
    """A failure for a dead server; a warning where the step uses another model than the configured one, or not this server."""
    name = f"model-server-{server.step}"
    if answer is None:
        cure = f"set {server.url_setting} to the server's address, such as http://localhost:8000/v1"
        return Check(name, False, f"{server.engine_setting}=openai, and {server.url_setting} is not set", cure)
    address = mask_text(redact_uri(str(server.url)))
    if answer.unlisted and server.model and server.is_used:
        cure = f"check with a request that the server has {server.model}, and that {server.url_setting} ends with /v1"
        return Check(name, True, f"{address}: {answer.problem}; {server.model} is asked all the same", cure, True)
    if answer.problem:
        cure = f"start that server, wait until it has loaded its model, or correct {server.url_setting}, which ends with /v1"
        return Check(name, False, f"{address}: {answer.problem}", cure)
    shown = ", ".join(answer.models[:NAMES_SHOWN]) + (" …" if len(answer.models) > NAMES_SHOWN else "")
    detail = f"{address} answers, serves {shown}"
    if not server.is_used:
        return Check(name, True, f"{detail}; no step calls it", f"set {server.engine_setting}=openai, or unset {server.url_setting}", True)
    if server.model and server.model not in answer.models:
        cure = f"set {server.model_setting} to a model that is served, or start the server with {server.model}"
        return Check(name, True, f"{detail}, and not {server.model}: {answer.models[0]} is used instead", cure, True)
    return Check(name, True, detail)


async def ask_server(url: str, api_key: SecretStr | None) -> ServerAnswer:
    """Ask `/health`, beside `/v1`, and `/v1/models`. Sends the key, and never quotes it."""
    base = url.rstrip("/")
    headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS), httpx.AsyncClient(headers=headers, timeout=PROBE_TIMEOUT_SECONDS) as http:
            status, _ = await get(http, f"{base.removesuffix('/v1')}/health")
            if status != 200 and status not in WITHOUT_HEALTH_ROUTE:
                return ServerAnswer(f"/health answers {status}")
            status, body = await get(http, f"{base}/models")
    except TimeoutError as error:
        return ServerAnswer(f"does not answer: {describe_error(error)}")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return ServerAnswer(f"does not answer: {describe_http_error(error)}")
    if status in (401, 403):
        return ServerAnswer(f"the list of models needs another API key ({status})")
    return read_models(body) if status == 200 else ServerAnswer(f"the list of models answers {status}", unlisted=status in WITHOUT_LIST)


async def get(http: httpx.AsyncClient, url: str) -> tuple[int, bytes]:
    """The status, and the body up to MAX_ANSWER_BYTES."""
    body = b""
    async with http.stream("GET", url) as response:
        async for chunk in response.aiter_bytes(1 << 16):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                break
    return response.status_code, body


def read_models(body: bytes) -> ServerAnswer:
    try:
        names = tuple(str(model["id"])[:200] for model in json.loads(body)["data"])
    except (ValueError, KeyError, TypeError):
        return ServerAnswer("the list of models is none of an OpenAI-compatible server", unlisted=True)
    return ServerAnswer(None if names else "serves no model yet", names)
