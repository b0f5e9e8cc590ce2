"""Pictures for a vision model on a real OpenAI-compatible server: `/vision`, `/multimodal` and the OpenAI client."""

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
from tests.support.broker_client import StartWorker
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
    purged_queues: None,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[str]:
    monkeypatch.setenv("VLLM_SERVER_URL", server)
    monkeypatch.setenv("TEXT_REPETITION_PENALTY", "1")  # this server does not support it
    async with live_gateway(bus_settings, store_folder, request_seconds=60) as url, start_worker(*text.ACTORS, *conversations.ACTORS):
        yield url


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


def png(color: str) -> bytes:
    with io.BytesIO() as file:
        Image.linear_gradient("L").convert("RGB").point(lambda value: value if color == "grey" else 255 - value).save(file, "PNG")
        return file.getvalue()


async def ask(http: httpx.AsyncClient, path: str, **options: Any) -> str:
    answer = await http.post(path, data={"message": "what is it", "max_tokens": "12", "temperature": "0"}, **options)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["response"])


async def test_answer_depends_on_image(http: httpx.AsyncClient) -> None:
    """The same picture gives the same answer, another picture a different one."""
    first, second, other = [await ask(http, "/vision", files={"image": ("x.png", png(name))}) for name in ("grey", "grey", "dark")]
    assert first == second != other


async def test_image_and_document_are_both_in_prompt(http: httpx.AsyncClient) -> None:
    files = {"image": ("x.png", png("grey")), "file": ("y.pdf", make_pdf("The harbour is open."))}
    answer_to_both = await ask(http, "/multimodal", files=files)
    assert answer_to_both != await ask(http, "/multimodal", files={"image": files["image"]})
    assert answer_to_both != await ask(http, "/multimodal", files={"file": files["file"]})


async def test_openai_client_sends_image(url: str) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png('grey')).decode()}"}}
    options: Any = {"model": MODEL_ID, "max_tokens": 8, "temperature": 0}
    async with official_client(url) as client:
        with_image = await client.chat.completions.create(
            messages=[{"role": "user", "content": [{"type": "text", "text": "what is it"}, image]}],  # type: ignore[list-item]
            **options,
        )
        without_image = await client.chat.completions.create(messages=[{"role": "user", "content": "what is it"}], **options)
    assert with_image.usage is not None
    assert without_image.usage is not None
    assert with_image.usage.prompt_tokens == without_image.usage.prompt_tokens + 9, "nine patches"
