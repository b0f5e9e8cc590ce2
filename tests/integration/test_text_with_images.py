"""Pictures shown to a model that sees, behind a real server that is not ours: `/vision`, `/multimodal`, the OpenAI client, a verdict."""

import base64
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from actors import conversations, text
from bus.settings import BusSettings
from tests.support.broker_client import BrokerClient, StartWorker
from tests.support.live_gateway import live_gateway, official_client
from tests.support.sample_documents import make_pdf
from tests.support.transformers_server import MODEL_ID, START_SECONDS, transformers_server

pytestmark = [pytest.mark.models, pytest.mark.timeout(START_SECONDS + 60)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with transformers_server(tmp_path_factory.mktemp("hub")) as url:
        yield url


@pytest.fixture
async def url(
    server: str,
    bus_settings: BusSettings,
    store_folder: Path,
    broker_client: BrokerClient,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[str]:
    monkeypatch.setenv("VLLM_SERVER_URL", server)
    monkeypatch.setenv("TEXT_REPETITION_PENALTY", "1")  # this server knows none
    async with live_gateway(bus_settings, store_folder, request_seconds=60) as url, start_worker(*text.ACTORS, *conversations.ACTORS):
        yield url


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


def png(colour: str) -> bytes:
    with io.BytesIO() as file:
        Image.linear_gradient("L").convert("RGB").point(lambda value: value if colour == "grey" else 255 - value).save(file, "PNG")
        return file.getvalue()


async def said(http: httpx.AsyncClient, path: str, **sent: Any) -> str:
    answer = await http.post(path, data={"message": "what is it", "max_tokens": "12", "temperature": "0"}, **sent)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["response"])


async def test_answer_depends_on_image(http: httpx.AsyncClient) -> None:
    """The same picture twice is the same answer; another picture is another one: it was seen."""
    grey, again, other = [await said(http, "/vision", files={"image": ("x.png", png(name))}) for name in ("grey", "grey", "dark")]
    assert grey == again != other


async def test_image_and_document_are_both_in_prompt(http: httpx.AsyncClient) -> None:
    files = {"image": ("x.png", png("grey")), "file": ("y.pdf", make_pdf("The harbour is open."))}
    both = await said(http, "/multimodal", files=files)
    assert both != await said(http, "/multimodal", files={"image": files["image"]})
    assert both != await said(http, "/multimodal", files={"file": files["file"]})


async def test_openai_client_sends_image(url: str) -> None:
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png('grey')).decode()}"}}
    asked: Any = {"model": MODEL_ID, "max_tokens": 8, "temperature": 0}
    async with official_client(url) as client:
        seen = await client.chat.completions.create(
            messages=[{"role": "user", "content": [{"type": "text", "text": "what is it"}, shown]}],  # type: ignore[list-item]
            **asked,
        )
        blind = await client.chat.completions.create(messages=[{"role": "user", "content": "what is it"}], **asked)
    assert seen.usage is not None
    assert blind.usage is not None
    assert seen.usage.prompt_tokens == blind.usage.prompt_tokens + 9, "nine patches"
