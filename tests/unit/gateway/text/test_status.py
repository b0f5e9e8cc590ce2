"""The cached status of the text worker, and what `/health` and `/status/detailed` report of it."""

from typing import Any

import pytest

from contracts.fault import Fault
from gateway.text.status import TextStatusCache
from tests.support.fake_broker import FakePublisher, Replier, make_services
from tests.unit.gateway.conftest import OpenFakeGateway

STATUS: dict[str, Any] = {
    "model_name": "tiny",
    "engine": "vllm",
    "engine_status": "running",
    "running_requests": 4,
    "pending_requests": 2,
    "tokens_generated": 9,
    "vision": True,
    "max_model_len": 128,
    "gpu_memory_used": 24.5,
    "gpu_memory_total": 49.0,
    "gpu_count": 1,
    "gpu_utilization": 91.0,
    "cache_utilization": 12.5,
    "engine_config": {"max_num_seqs": 8},
}
CONVERSATIONS = {"conversations": [], "total_conversations": 1, "total_messages": 2}
LOADING = Fault(code="loading", message="the model loads", step="text.status")
OTHER = Fault(code="internal", message="bug", step="text.status")


@pytest.mark.parametrize(
    ("replies", "served", "loaded", "conversations"),
    [
        ({}, False, False, 0),
        ({"text.status": LOADING}, True, False, 0),
        ({"text.status": None}, True, False, 0),
        ({"text.status": STATUS}, True, True, 0),
        ({"text.status": STATUS, "conversation.list": CONVERSATIONS}, True, True, 1),
        ({"text.status": OTHER}, False, False, 0),
    ],
)
async def test_snapshot_has_state_of_text_worker_and_conversation_count(
    replies: dict[str, Replier], served: bool, loaded: bool, conversations: int
) -> None:
    snapshot = await TextStatusCache(make_services(FakePublisher(replies)).commands, timeout_seconds=0.01).latest()
    assert (snapshot.served, snapshot.status is not None, snapshot.loading) == (served, loaded, served and not loaded)
    assert snapshot.conversations == conversations


@pytest.mark.parametrize(("max_age", "queries"), [(60.0, 1), (0.0, 2)])
async def test_snapshot_is_cached(max_age: float, queries: int) -> None:
    publisher = FakePublisher({"text.status": STATUS})
    cache = TextStatusCache(make_services(publisher).commands, max_age_seconds=max_age)
    await cache.latest()
    await cache.latest()
    assert len(publisher.commands("text.status")) == queries


@pytest.mark.parametrize(
    ("replies", "connected", "code", "status"),
    [
        ({}, True, 200, "healthy"),
        ({"text.status": STATUS}, True, 200, "healthy"),
        ({"text.status": LOADING}, True, 200, "loading"),
        ({"text.status": STATUS}, False, 503, "unavailable"),
    ],
)
async def test_health_reports_model_loading_and_broker_outage(
    gateway: OpenFakeGateway, replies: dict[str, Replier], connected: bool, code: int, status: str
) -> None:
    fake_gateway = gateway(replies)
    fake_gateway.publisher.connected = connected
    response = await fake_gateway.http.get("/health")
    assert (response.status_code, response.json()["status"], response.json()["broker"]) == (code, status, connected)


async def test_detailed_status_has_same_fields_with_and_without_worker(gateway: OpenFakeGateway) -> None:
    loaded = (await gateway({"text.status": STATUS, "conversation.list": CONVERSATIONS}).http.get("/status/detailed")).json()
    without_worker = (await gateway().http.get("/status/detailed")).json()
    assert list(loaded) == list(without_worker)
    assert (loaded["model_info"]["name"], loaded["model_info"]["max_num_seqs"], without_worker["model_info"]["name"]) == ("tiny", "8", None)
    assert (loaded["vllm_info"]["running_requests"], loaded["vllm_info"]["max_num_seqs"], loaded["vllm_info"]["cache_utilization"]) == (
        4,
        8,
        12.5,
    )
    assert (loaded["server_info"]["multimodal_support"], without_worker["server_info"]["multimodal_support"]) == ("enabled", "disabled")
    assert loaded["conversation_info"] == {"active_conversations": 1, "total_messages": 2}


@pytest.mark.parametrize(
    ("fields", "gpu_info"),
    [
        ({}, (True, 1, 24.5, 49.0, 50.0, 91.0)),
        ({"gpu_count": 0, "gpu_memory_used": None, "gpu_memory_total": None, "gpu_utilization": None}, (False, 0, None, None, None, None)),
        ({"gpu_count": None, "gpu_memory_used": None, "gpu_memory_total": None, "gpu_utilization": None}, (None,) * 6),
    ],
)
async def test_gpu_state_is_what_the_engine_reports(gateway: OpenFakeGateway, fields: dict[str, Any], gpu_info: tuple[Any, ...]) -> None:
    """A server that does not say whether it has a GPU is not reported as one without."""
    http = gateway({"text.status": STATUS | fields}).http
    assert tuple((await http.get("/status/detailed")).json()["gpu_info"].values()) == gpu_info
    assert (await http.get("/health")).json()["gpu_memory_used"] == gpu_info[2]
