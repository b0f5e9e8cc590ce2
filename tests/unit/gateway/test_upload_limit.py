"""Every route that takes pictures has one limit, into which a photo fits as base64; all other routes have the limit of a message."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.routing import APIRoute

import gateway.console
from bus.storage.claim_store import ClaimStore
from contracts.claim import Claim
from contracts.steps import COMMANDS
from gateway.apis import all_apis
from gateway.compat.vertex import VertexSettings
from gateway.settings import GatewaySettings
from gateway.text.uploads import MAX_INLINE_CHARS
from tests.unit.gateway.conftest import OpenFakeGateway

PHOTO = b"\xff\xd8\xff" + b"x" * 1_750_000
PHOTO_BASE64 = base64.b64encode(PHOTO).decode()
CLAIM = {"uri": "s3://b/x", "sha256": "ab" * 32, "media_type": "image/jpeg", "size": 1}
TEMPLATES = Path(str(gateway.console.__file__)).parent / "templates"
STEP_ARGUMENTS = "arguments"
IMAGE_PATHS = {"/v1/images/generations", "/v1/images/edits"}
LIMITS = {"max_body_bytes": 1000, "max_upload_bytes": 3000}
LARGEST_BODY = 1000 + 2 * 4000


class RecordingStore:
    def __init__(self) -> None:
        self.written: list[tuple[int, str | None, str]] = []

    async def write(self, data: bytes, *, tenant: str | None, media_type: str) -> Claim:
        self.written.append((len(data), tenant, media_type))
        return Claim(uri="s3://b/x", sha256="ab" * 32, media_type=media_type, size=len(data))


def takes_files(schema: Any, definitions: dict[str, Any], commands: tuple[dict[str, Any], ...] = ()) -> bool:
    """Whether a body has a field for a file, at any depth: binary, or a text that its description calls base64.

    `commands`: the schemas of what a field `arguments` holds.
    """
    seen: set[str] = set()

    def search(part: Any) -> bool:
        if isinstance(part, list):
            return any(map(search, part))
        if not isinstance(part, dict):
            return False
        if (reference := str(part.get("$ref", "")).rpartition("/")[2]) and reference not in seen:
            seen.add(reference)
            return search(definitions[reference])
        is_file = part.get("format") == "binary" or "base64" in str(part.get("description", ""))
        holds_command = STEP_ARGUMENTS in part.get("properties", {})
        in_command = holds_command and any(takes_files(command, command.get("$defs", {})) for command in commands)
        return (is_file and "properties" not in part) or in_command or any(map(search, part.values()))

    return search(schema)


def form_actions() -> Iterator[str]:
    """The addresses of the console's forms with a file."""
    for template in TEMPLATES.glob("*.html"):
        for action, body in re.findall(r'<form[^>]*action="{{ path }}([^"]*)"[^>]*>(.*?)</form>', template.read_text(), re.DOTALL):
            if 'type="file"' in body or "picture_field(" in body:
                yield f"/console{action}"


async def picture_paths(open_gateway: OpenFakeGateway) -> set[str]:
    document = (await open_gateway().http.get("/openapi.json")).json()
    definitions = document["components"]["schemas"]
    bodies = {path: operations["post"].get("requestBody", {}) for path, operations in document["paths"].items() if "post" in operations}
    commands = tuple(command.model_json_schema() for command in COMMANDS.values())
    return {path for path, body in bodies.items() if takes_files(body, definitions, commands)} | set(form_actions())


def posted_paths() -> set[str]:
    apis = all_apis(VertexSettings.model_validate({})).values()
    routes = (route for api in apis for router in api.routers for route in router.routes)
    return {route.path for route in routes if isinstance(route, APIRoute) and "POST" in route.methods}


async def test_routes_that_take_pictures_are_found(gateway: OpenFakeGateway) -> None:
    paths = await picture_paths(gateway)
    texts = {"/predict", "/vision", "/multimodal", "/v1/chat/completions", "/v1/responses", "/v1/moderations", "/console/chat"}
    assert paths == texts | {"/jobs", "/console/make"} | IMAGE_PATHS
    assert paths < posted_paths()


async def test_routes_that_take_pictures_share_one_limit_and_others_have_that_of_a_message(gateway: OpenFakeGateway) -> None:
    http, paths = gateway(question_seconds=0.01, vertex={"ready_seconds": 0.01}, **LIMITS).http, await picture_paths(gateway)
    for path in posted_paths():
        limit = LARGEST_BODY if path in paths else 1000
        fits, too_large = [
            await http.post(path.replace("{", "").replace("}", ""), content=b"x" * size, headers={"Content-Type": "application/json"})
            for size in (limit, limit + 1)
        ]
        assert (fits.status_code == 413, too_large.status_code) == (False, 413), path


@pytest.mark.parametrize("api", ["jobs", "text", "openai", "console", "vertex"])
def test_a_photo_and_its_growth_as_base64_fit(api: str) -> None:
    settings = GatewaySettings.model_validate({"apis": api})
    assert len(PHOTO_BASE64) > settings.max_body_bytes, "the limit of a message"
    assert settings.max_upload_bytes * 4 // 3 + settings.max_body_bytes <= settings.max_upload_body_bytes


async def test_body_without_length_has_the_same_limit(gateway: OpenFakeGateway) -> None:
    """On routes that take files as on others, to the byte."""

    async def body(size: int) -> Any:
        for start in range(0, size, 500):
            yield b"x" * min(500, size - start)

    http, paths = gateway(question_seconds=0.01, vertex={"ready_seconds": 0.01}, **LIMITS).http, await picture_paths(gateway)
    for path in posted_paths():
        limit = LARGEST_BODY if path in paths else 1000
        address = path.replace("{", "").replace("}", "")
        fits, too_large = [
            await http.post(address, content=body(size), headers={"Content-Type": "application/json"}) for size in (limit, limit + 1)
        ]
        assert fits.status_code != 413, path
        unread = "not ready" in too_large.text or path in {"/v1/images/edits", "/v1/responses/{response_id}/cancel"}  # forms only, nothing
        assert too_large.status_code == 413 or unread, path


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ({"step": "consult", "arguments": {"prompt": "?", "image": PHOTO_BASE64}}, ["picture"]),
        ({"step": "text", "arguments": {"message": "?", "pictures": [{"data": f"data:image/jpeg;base64,{PHOTO_BASE64}"}]}}, ["pictures"]),
        ({"step": "image", "arguments": {"prompt": "x", "edit": {"image": PHOTO_BASE64, "mask": CLAIM}}}, ["edit"]),
        ({"step": "image", "arguments": {"prompt": "x", "control": {"image": PHOTO_BASE64, "model": "canny"}}}, ["control"]),
    ],
)
async def test_photo_inside_a_job_becomes_its_claim(gateway: OpenFakeGateway, stop: dict[str, Any], expected: list[str]) -> None:
    store = RecordingStore()
    fake_gateway = gateway(store=cast("ClaimStore", store))
    response = await fake_gateway.http.post("/jobs", json={"kind": "itinerary", "tenant": "shop", "stops": [stop]})
    assert response.status_code == 202, response.text
    assert store.written == [(len(PHOTO), "shop", "image/jpeg")]
    command = fake_gateway.publisher.commands(stop["step"])[0]
    assert set(expected) < command.keys()
    assert PHOTO_BASE64[:100] not in str(command)


async def test_photo_in_a_variable_becomes_a_claim_and_a_short_one_stays(gateway: OpenFakeGateway) -> None:
    store = RecordingStore()
    fake_gateway = gateway(store=cast("ClaimStore", store))
    stops = [{"step": "consult", "arguments": {"prompt": "?"}}]
    for image in (PHOTO_BASE64, "eA=="):
        body = {"kind": "itinerary", "stops": stops, "variables": {"image": image}}
        assert (await fake_gateway.http.post("/jobs", json=body)).status_code == 202
    with_claim, inline = fake_gateway.publisher.commands("consult")
    assert (with_claim["picture"]["size"], "image" in with_claim, inline["image"]) == (len(PHOTO), False, "eA==")


@pytest.mark.parametrize("kind", ["image_order", "ad"])
async def test_picture_of_an_image_order_becomes_its_claim(gateway: OpenFakeGateway, kind: str) -> None:
    """However short it is: the command has no field for base64. A claim stays, and so do the other fields."""
    store = RecordingStore()
    fake_gateway = gateway(store=cast("ClaimStore", store))
    order = {"kind": kind, "prompt": "x", "text": "Sale", "tenant": "shop", "edit": {"image": "/9j/eA==", "mask": CLAIM, "strength": 0.4}}
    if kind == "image_order":
        del order["text"]
    response = await fake_gateway.http.post("/jobs", json=order)
    assert response.status_code == 202, response.text
    assert store.written == [(4, "shop", "image/jpeg")]
    (command,) = fake_gateway.publisher.commands("image")
    assert command["edit"] == {"image": CLAIM | {"size": 4}, "mask": CLAIM, "strength": 0.4}


async def test_picture_in_a_variable_of_the_image_step_becomes_its_claim(gateway: OpenFakeGateway) -> None:
    store = RecordingStore()
    fake_gateway = gateway(store=cast("ClaimStore", store))
    variables = {"prompt": "x", "control": {"image": "/9j/eA==", "model": "canny"}}
    response = await fake_gateway.http.post("/jobs", json={"kind": "itinerary", "stops": [{"step": "image"}], "variables": variables})
    assert response.status_code == 202, response.text
    (command,) = fake_gateway.publisher.commands("image")
    assert command["control"] == {"image": CLAIM | {"size": 4}, "model": "canny"}


@pytest.mark.parametrize("picture", ["no base64 é", "data:image/png;base64,?"])
async def test_picture_that_is_not_base64_is_refused(gateway: OpenFakeGateway, picture: str) -> None:
    fake_gateway = gateway(store=cast("ClaimStore", RecordingStore()))
    response = await fake_gateway.http.post("/jobs", json={"kind": "image_order", "prompt": "x", "edit": {"image": picture}})
    assert (response.status_code, response.json()["title"]) == (400, "not-base64")
    assert fake_gateway.publisher.messages == []


@pytest.mark.parametrize(
    "stop",
    [
        {"step": "consult", "arguments": {"prompt": "?", "image": PHOTO_BASE64, "picture": CLAIM}},
        {"step": "text", "arguments": {"message": "?", "documents": [{"data": PHOTO_BASE64, "claim": CLAIM}]}},
        {"step": "text", "arguments": {"messages": [{"role": "user", "content": [{"picture": {"data": "eA==", "claim": CLAIM}}]}]}},
    ],
)
async def test_file_that_is_given_twice_is_refused(gateway: OpenFakeGateway, stop: dict[str, Any]) -> None:
    store = RecordingStore()
    fake_gateway = gateway(store=cast("ClaimStore", store))
    response = await fake_gateway.http.post("/jobs", json={"kind": "itinerary", "stops": [stop]})
    assert (response.status_code, response.json()["title"]) == (422, "file-ambiguous"), response.text
    assert (store.written, fake_gateway.publisher.messages) == ([], [])


async def test_what_no_step_takes_as_a_file_stays(gateway: OpenFakeGateway) -> None:
    """A free variable, and a JSON schema with a property of the same name."""
    store = RecordingStore()
    fake_gateway = gateway(store=cast("ClaimStore", store))
    long = "x" * (MAX_INLINE_CHARS + 1)
    stops = [{"step": "text", "arguments": {"message": "?", "json_schema": {"properties": {"a": {"data": long}}}}}]
    variables = {"notes": {"image": long, "data": long}}
    body = {"kind": "itinerary", "stops": stops, "variables": variables}
    response = await fake_gateway.http.post("/jobs", json=body)
    assert response.status_code == 202, response.text
    (command,) = fake_gateway.publisher.commands("text")
    assert (store.written, command["json_schema"]) == ([], stops[0]["arguments"]["json_schema"])  # type: ignore[index]


async def test_long_text_that_is_not_base64_is_refused(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway(store=cast("ClaimStore", RecordingStore()))
    stops = [{"step": "consult", "arguments": {"prompt": "?", "image": "é" * (MAX_INLINE_CHARS + 1)}}]
    response = await fake_gateway.http.post("/jobs", json={"kind": "itinerary", "stops": stops})
    assert (response.status_code, fake_gateway.publisher.messages) == (400, [])
