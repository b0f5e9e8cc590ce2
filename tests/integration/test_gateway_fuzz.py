"""Whatever the OpenAPI document allows, and much that it does not: the gateway never fails."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import run_worker
from gateway.app import create_app
from gateway.problems import ERROR_FORMATS
from gateway.settings import GatewaySettings
from ops.registry import load_actors
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR

DOCUMENTED = [status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 25
"""Requests an operation: enough to find what is easily found, few enough for every run."""
FEW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def address(bus_settings: BusSettings, store_folder: Path) -> Iterator[str]:
    """A gateway on a port of its own, its ledger, its conversations and a painter, in a thread with a loop."""
    store = StoreSettings(store_url=store_folder.as_uri())
    limits = GatewaySettings(question_seconds=3, request_seconds=0.3, rate_requests=0, keepalive_seconds=0.2, longest_wait_seconds=0.2)
    staff = load_actors(["ledger", "dead-letters", "conversations"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(bus_settings, limits, store), log_config=None, lifespan="on"))

        async def serve() -> None:
            async with run_worker([*staff.actors, FAKE_IMAGE_ACTOR], (), bus_settings, store, staff.ingests):
                await server.serve([listening])

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


def ask(operation: schemathesis.APIOperation) -> int:
    """Try one operation, and return how often. On a source system's path a part that is missing is a 500, by its own word."""
    ours, theirs = operation.path.startswith("/jobs"), any(operation.path.startswith(prefix) for prefix in ERROR_FORMATS)
    tried = 0

    @FEW
    @given(case=operation.as_strategy())
    def asked(case: schemathesis.Case) -> None:
        nonlocal tried
        tried += 1
        response = case.call(timeout=20, headers={"X-Request-Timeout": "0.3"} if theirs else {})
        assert response.status_code != 500 or theirs, response.text
        assert response.status_code < 500 or not ours, response.text
        if ours:
            case.validate_response(response, checks=DOCUMENTED)

    asked()
    return tried


@pytest.mark.timeout(300)
def test_fuzzed_requests_never_return_500(address: str) -> None:
    """Never a 500. On the paths of jobs: no 5xx at all, and no answer that the document does not name."""
    document = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [operation.ok() for operation in document.get_all_operations()]
    # A stream of an unknown job waits before it is a 404; its parameters are those of the others.
    assert sum(ask(operation) for operation in operations if not operation.path.endswith("/events")) > 100
