"""Fuzzed requests that the OpenAPI document allows, and others: the gateway never fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from gateway.app import create_app
from gateway.compat.vertex import VertexSettings
from gateway.settings import GatewaySettings
from ops.registry import load_actors
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.gateway_thread import serve_in_thread

DOCUMENTED = [status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 25
"""Requests per operation: few enough for every run."""
FEW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


ServedGateway = tuple[str, tuple[str, ...]]
"""The URL, and the path prefixes with an error format of their own."""


@pytest.fixture
def served_gateway(bus_settings: BusSettings, store_folder: Path) -> Iterator[ServedGateway]:
    """A gateway with ledger, conversations and a fake image actor."""
    store = StoreSettings(store_url=store_folder.as_uri())
    limits = GatewaySettings(question_seconds=3, request_seconds=0.3, rate_requests=0, keepalive_seconds=0.2, longest_wait_seconds=0.2)
    components = load_actors(["ledger", "dead-letters", "conversations"])
    app = create_app(bus_settings, limits, store, vertex=VertexSettings(ready_seconds=0.3))
    actors = [*components.actors, FAKE_IMAGE_ACTOR]
    with serve_in_thread(app, lambda: Worker(actors, (), bus_settings, store, components.ingests).run()) as url:
        yield url, tuple(prefix for prefix, _ in app.state.error_formats)


def fuzz_operation(operation: schemathesis.APIOperation, foreign_prefixes: tuple[str, ...]) -> int:
    """Send requests to one operation: their number. The APIs of source systems and of OpenAI answer a missing worker with a 500."""
    is_jobs_api, is_foreign = operation.path.startswith("/jobs"), operation.path.startswith(foreign_prefixes)
    sent = 0

    @FEW
    @given(case=operation.as_strategy())
    def send(case: schemathesis.Case) -> None:
        nonlocal sent
        sent += 1
        response = case.call(timeout=20, headers={"X-Request-Timeout": "0.3"} if is_foreign else {})
        assert response.status_code != 500 or is_foreign, response.text
        assert response.status_code < 500 or not is_jobs_api, response.text
        if is_jobs_api:
            case.validate_response(response, checks=DOCUMENTED)

    send()
    return sent


@pytest.mark.timeout(300)
def test_fuzzed_requests_never_return_500(served_gateway: ServedGateway) -> None:
    """On the jobs API: no 5xx at all, and only documented responses."""
    url, foreign_prefixes = served_gateway
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [operation.ok() for operation in document.get_all_operations()]
    # An event stream of an unknown job takes two seconds until its 404; its parameters are those of other operations.
    fuzzed = [operation for operation in operations if not operation.path.endswith("/events")]
    assert sum(fuzz_operation(operation, foreign_prefixes) for operation in fuzzed) > 100
