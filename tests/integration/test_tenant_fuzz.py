"""Fuzzed requests of one tenant, filled with another tenant's ids: no answer shows the other's data, and nothing of it changes."""

import copy
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from gateway.app import create_app
from gateway.settings import GatewaySettings
from ops.registry import load_actors
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.fake_openai_server import open_fake_openai_server
from tests.support.gateway_thread import serve_in_thread

KEYS = {name: f"{name}-{'k' * 32}" for name in ("shop", "office")}
SECRET_TEXT = "recipe of the shop"
LIMITS: dict[str, Any] = {"question_seconds": 3, "request_seconds": 2, "rate_requests": 0, "keepalive_seconds": 0.2, "failed_keys": 0}
FUZZED = settings(
    max_examples=8,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Shop:
    """What the tenant `shop` owns: a finished job with a file, and a conversation."""

    http: httpx.Client
    job: dict[str, Any]
    conversation_id: str
    file: bytes

    @property
    def references(self) -> list[str]:
        """What another tenant might guess or have seen."""
        claims = [image for step in self.job["steps"] for image in (step.get("result") or {}).get("images", [])]
        names = [file["name"] for file in self.job["files"]]
        return [self.job["job_id"], self.conversation_id, *names, *(claim["uri"] for claim in claims), "shop"]

    def state(self) -> Any:
        job = self.http.get(f"/jobs/{self.job['job_id']}").json()
        return job, self.http.get(f"/conversations/{self.conversation_id}").json(), self.http.get("/jobs").json()


@pytest.fixture
def url(bus_settings: BusSettings, store_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A gateway with two tenants' keys, the ledger, the text step behind a local model server, and the steps of an image order."""
    store = StoreSettings(store_url=store_folder.as_uri())
    keys = " ".join(f"{name}:{key}" for name, key in KEYS.items())
    app = create_app(bus_settings, GatewaySettings.model_validate(LIMITS | {"api_keys": keys}), store)

    @asynccontextmanager
    async def open_workers() -> AsyncIterator[None]:
        async with open_fake_openai_server() as model:
            monkeypatch.setenv("VLLM_SERVER_URL", f"{model.url}/v1")
            actors = load_actors(["ledger", "conversations", "text", "watermark", "upload"]).actors
            async with Worker([*actors, FAKE_IMAGE_ACTOR], (), bus_settings, store).run():
                yield

    with serve_in_thread(app, open_workers) as url:
        yield url


@pytest.fixture
def shop(url: str) -> Iterator[Shop]:
    with httpx.Client(base_url=url, headers={"X-API-Key": KEYS["shop"]}, timeout=30) as http:
        order = {"kind": "image_order", "prompt": SECRET_TEXT, "width": 64, "height": 64, "artist": "Kim"}
        job_id = http.post("/jobs", json=order, params={"wait": 30}).json()["job_id"]
        while (job := http.get(f"/jobs/{job_id}").json()).get("state") not in ("completed", "failed"):
            pass
        assert job["state"] == "completed", job
        conversation = http.post("/generate", json={"message": SECRET_TEXT}).json()["conversation_id"]
        file = http.get(job["files"][0]["href"]).content
        yield Shop(http, job, conversation, file)


def with_reference(value: Any, reference: str) -> Any:
    """A JSON value with every text in it replaced."""
    if isinstance(value, dict):
        return {name: with_reference(inner, reference) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_reference(inner, reference) for inner in value]
    return reference if isinstance(value, str) else value


def fuzz_operation(operation: Any, shop: Shop) -> int:
    """Requests of `office` to one operation: their number."""
    sent = 0

    @FUZZED
    @given(case=operation.as_strategy(), reference=st.sampled_from(shop.references), in_body=st.booleans())
    def send(case: schemathesis.Case, reference: str, in_body: bool) -> None:
        nonlocal sent
        sent += 1
        case.path_parameters = dict.fromkeys(case.path_parameters or {}, reference)
        case.query = {name: with_reference(value, reference) if in_body else value for name, value in (case.query or {}).items()}
        if in_body and not isinstance(case.body, bytes | schemathesis.core.NotSet):
            case.body = with_reference(copy.deepcopy(case.body), reference)
        response = case.call(timeout=30, headers={"X-API-Key": KEYS["office"], "X-Request-Timeout": "0.5"})
        assert SECRET_TEXT.encode() not in response.content, (case.method, case.formatted_path, response.text[:500])
        assert shop.file not in response.content, (case.method, case.formatted_path)

    send()
    return sent


@pytest.mark.timeout(600)
def test_one_tenant_never_sees_or_changes_the_data_of_another(url: str, shop: Shop) -> None:
    before = shop.state()
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [operation.ok() for operation in document.get_all_operations()]
    assert sum(fuzz_operation(operation, shop) for operation in operations) > 100
    assert shop.state() == before
    assert SECRET_TEXT in str(before), "the shop itself sees its data"
