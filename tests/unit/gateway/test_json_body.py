"""Hostile JSON: at every route with a body, it is refused as the client's mistake, whatever its depth, numbers and size."""

import json
from typing import Any

import pytest
from fastapi.routing import APIRoute

from gateway.json_body import JsonRoute, count_values, has_more_values, parse_json
from tests.unit.gateway.conftest import OpenFakeGateway

KEY = "k" * 32
HOSTILE_BODIES = {
    "deep list": b"[" * 100_000,
    "closed deep list": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep field": b'{"message": ' + b"[" * 199 + b"]" * 199 + b"}",
    "deeper than Python's stack": b'{"kind": "itinerary", "variables": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}",
    "NaN": b'{"a": NaN}',
    "infinite": b'{"a": 1e999}',
    "many values": b'{"message": [' + b"1," * 60_000 + b"1]}",
    "many fields": b'{"message": "x", ' + b",".join(b'"a%d": 1' % number for number in range(30_000)) + b"}",
    "long number": b'{"a": ' + b"1" * 100_000 + b"}",
    "not UTF-8": b'{"message": "\xff\xfe"}',
    "empty": b"",
}


async def test_hostile_json_is_a_clients_error_at_every_route(gateway: OpenFakeGateway) -> None:
    """The routes are those of the OpenAPI document: a new one is tested without a change here."""
    fake_gateway = gateway({"consult.ready": {"ready": True}})
    document = fake_gateway.app.openapi()
    posts = {path: operations.get("post", {}) for path, operations in document["paths"].items()}
    bodies = {path: post["requestBody"] for path, post in posts.items() if "requestBody" in post}
    forms = {path for path, body in bodies.items() if "application/json" not in body["content"]}
    assert len(bodies) > 8
    for path in [*bodies, "/predict"]:
        for name, body in HOSTILE_BODIES.items():
            answer = await fake_gateway.http.post(
                path.replace("{letter_id}", "x"), content=body, headers={"Content-Type": "application/json"}
            )
            allowed = {400, 413, 422} | ({415} if path in forms else set())
            allowed |= {500} if path == "/predict" else set()  # The source system's own status for an invalid request.
            assert answer.status_code in allowed, (path, name, answer.status_code, answer.text[:200])
            assert "its log has the reason" not in answer.text.lower(), (path, name)
            assert len(answer.content) < 100_000, (path, name)
    assert {message.routing_key for message in fake_gateway.publisher.messages} == {"consult.ready"}, "the question before /predict"


def test_every_json_body_is_parsed_by_the_bounded_parser(gateway: OpenFakeGateway) -> None:
    """A route that FastAPI parses the body for is a JsonRoute."""
    routes = [route for route in all_routes(gateway().app) if route.body_field]
    assert len(routes) > 6
    assert [route.path for route in routes if not isinstance(route, JsonRoute)] == []


def all_routes(app: Any) -> list[APIRoute]:
    """Also those of included routers, which newer versions of FastAPI keep as they are."""
    found: list[APIRoute] = []
    waiting = list(app.routes)
    while waiting:
        route = waiting.pop()
        if isinstance(route, APIRoute):
            found.append(route)
        waiting += getattr(getattr(route, "original_router", None) or getattr(route, "router", None), "routes", [])
    return found


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "[[1, 1e999]]", '{"a": -1e999}', "[" * 300 + "]" * 300, "{", "1" * 5000])
def test_nonstandard_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_standard_json_is_parsed_like_pythons() -> None:
    value = {"a": [1, 2.5, True, None, "é", {"b": {}}], "c": '\n\\"', "d": 10**40}
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "structure"),
    [({"a": 1}, 2), ([1, 2, 3], 3), ([], 1), ({"a": '",[{:\\"', 'b,\\"': "\\\\"}, 4), ('",,,,"', 0), ("\\", 0), (["\\", "[["], 2)],
)
def test_values_are_counted_outside_strings(value: Any, structure: int) -> None:
    assert count_values(json.dumps(value).encode()) == structure


def test_text_does_not_count_as_values() -> None:
    assert not has_more_values(json.dumps({"message": "1, 2: [{" * 10_000}).encode(), 1000)
    assert not has_more_values(json.dumps({"message": json.dumps({"a": "b"}) * 3_000}).encode(), 1000), "escaped quotes are text"
    assert has_more_values(b'["",' + b'"",' * 10_000 + b"1]", 1000)
    assert has_more_values(b"[" + b"1," * 2000 + b"1]", 1000)
    assert not has_more_values(b"[" + b"1," * 998 + b"1]", 1000)


async def test_order_with_too_many_values_is_413_and_says_so(gateway: OpenFakeGateway) -> None:
    order = {"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "x"}}], "variables": {"x": [1] * 200}}
    answer = await gateway(max_json_values=100).http.post("/jobs", json=order)
    assert (answer.status_code, "more than 100 values" in answer.json()["detail"]) == (413, True)


async def test_long_text_is_no_picture(gateway: OpenFakeGateway) -> None:
    """The larger body of the chat is for pictures."""
    body = {"model": "text", "messages": [{"role": "user", "content": "x" * 2_000_000}]}
    answer = await gateway().http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "message_too_large")
