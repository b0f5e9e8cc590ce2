"""What a gateway imports and holds before its first request. Its start in time: tests/integration/test_concurrent_clients.py."""

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi._compat import v2
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from bus.settings import BusSettings
from contracts.claim import Claim
from contracts.steps import COMMANDS
from contracts.verdict import VerdictSchema
from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.strict_model import LazyTypeAdapter, defer_adapters, strict_model
from tests.conftest import SETTING_PREFIXES

ROOT = Path(__file__).parents[3]
START = """
import json, sys
import psutil
import bus, gateway, aio_pika, asyncpg, fastapi, httptools, prometheus_client, pydantic_settings, uvicorn
libraries = psutil.Process().memory_info().rss
import gateway.serve
from bus.settings import BusSettings
from gateway.app import create_app
from gateway.settings import GatewaySettings
application = create_app(BusSettings.model_validate({"amqp_url": "amqp://localhost"}), GatewaySettings())
report = {"modules": list(sys.modules), "more_bytes": psutil.Process().memory_info().rss - libraries}
from fastapi.openapi.models import OpenAPI
from gateway.strict_model import HttpModel, LazyTypeAdapter
import gc
report["adapters"] = [len(vars(thing)) for thing in gc.get_objects() if isinstance(thing, LazyTypeAdapter)]
report["models"] = {model.__name__: model.__pydantic_complete__ for model in (OpenAPI, *HttpModel.__subclasses__())}
print(json.dumps(report))
"""
NOT_AT_START = {"faststream", "httpcore", "httpx", "jinja2", "PIL", "pydantic.v1.main", "pygments", "rich", "torch", "yaml"}
"""Libraries that a gateway may need later, or never."""
SCHEMA_OF_ROUTE = {"PredictRequest", "Problem"}
"""Models whose JSON schema is part of a route's declaration, which costs 0.5 MB."""


@pytest.fixture(scope="module")
def started() -> Any:
    """The report of a gateway with default settings. A fixture of a module begins before the one that clears the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SETTING_PREFIXES)}
    command = [sys.executable, "-c", START]
    return json.loads(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout)


def test_gateway_starts_without_the_libraries_that_few_requests_need(started: Any) -> None:
    assert "fastapi" in started["modules"]
    assert not NOT_AT_START & {*started["modules"]}


def test_gateway_takes_little_memory_beside_its_libraries(started: Any) -> None:
    """Measured: 12 MB, and 31 before validators waited for their first use and some libraries for theirs."""
    assert started["more_bytes"] < 17e6


def test_nothing_is_built_at_the_start_that_a_request_would_build(started: Any) -> None:
    assert len(started["adapters"]) > 200
    assert {*started["adapters"]} == {2}, "a built adapter has more than its two arguments"
    assert len(started["models"]) > 20
    assert {name for name, built in started["models"].items() if built} == SCHEMA_OF_ROUTE


def subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for subclass in model.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def fields_of(route: APIRoute) -> list[Any]:
    """What FastAPI validates for a route: parameters, body and responses."""
    fields = [*get_flat_params(route.dependant), route.body_field, route.response_field, *route.response_fields.values()]
    return [field for field in fields if field]


def test_every_validator_that_waits_for_its_first_use_can_be_built() -> None:
    """A field that no validator can be built for would be found by the first request only."""
    app = create_app(BusSettings.model_validate({"amqp_url": "amqp://localhost"}), GatewaySettings())
    models = {model for model in subclasses(BaseModel) if model.__module__.startswith(("gateway.", "contracts."))}
    assert models >= {*COMMANDS.values(), VerdictSchema, strict_model(Claim)}
    for model in models:
        model.model_rebuild()
    assert [model for model in models if not model.__pydantic_complete__] == []
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    assert len(routes) > 50, "all routes are the application's own"
    for adapter in [field._type_adapter for route in routes for field in fields_of(route)]:
        assert isinstance(adapter, LazyTypeAdapter)
        assert adapter.core_schema


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda adapter: pickle.loads(pickle.dumps(adapter))])
@pytest.mark.parametrize("used", [False, True])
def test_adapter_can_be_copied_as_that_of_pydantic(copied: Callable[[Any], Any], used: bool) -> None:
    adapter = LazyTypeAdapter(int)
    if used:
        assert adapter.validate_python("2") == 2
    assert copied(adapter).validate_python("3") == 3


def test_adapters_are_built_at_once_where_fastapi_lacks_the_private_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v2, "TypeAdapter", TypeAdapter)
    monkeypatch.setitem(sys.modules, "fastapi._compat", None)
    defer_adapters()
    assert v2.TypeAdapter is TypeAdapter
    monkeypatch.undo()
    assert v2.TypeAdapter is LazyTypeAdapter
