"""Embeddings: the commands built from a request, the response built from their results, and what is refused."""

import base64
import struct
from typing import Any

import pytest

from contracts.embed import Embed
from contracts.fault import Fault
from gateway.openai.embeddings import EmbeddingRequest
from gateway.settings import GatewaySettings
from tests.support.fake_broker import Replier
from tests.unit.gateway.conftest import FakeGateway, OpenFakeGateway

STATUS = {"model_name": "tiny-bert", "engine": "embedded", "dimensions": 2, "max_model_len": 64}


def pack(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def answer(command: dict[str, Any]) -> dict[str, Any]:
    """A vector with the length of each input."""
    vectors = [pack(len(text), 0.5) for text in command["inputs"]]
    return {"vectors": vectors, "model_name": "tiny-bert", "prompt_tokens": sum(map(len, command["inputs"]))}


SERVED: dict[str, Replier] = {"embed": answer, "embed.status": STATUS}


async def post(fake: FakeGateway, text: Any = "one", **fields: Any) -> Any:
    return await fake.http.post("/v1/embeddings", json={"model": "embedding", "input": text} | fields)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("float", [[3.0, 0.5], [5.0, 0.5]]), (None, [[3.0, 0.5], [5.0, 0.5]]), ("base64", [pack(3, 0.5), pack(5, 0.5)])],
)
async def test_response_has_a_vector_for_each_input(gateway: OpenFakeGateway, encoding: str | None, expected: list[Any]) -> None:
    fake = gateway(SERVED)
    response = await post(fake, ["one", "three"], encoding_format=encoding, user="u")
    assert response.json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(expected)],
        "model": "tiny-bert",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    assert response.headers["content-type"] == "application/json"
    assert fake.publisher.commands("embed") == [{"model": "embedding", "inputs": ["one", "three"]}]


async def test_many_inputs_are_several_commands(gateway: OpenFakeGateway) -> None:
    fake = gateway(SERVED)
    texts = ["x" * number for number in range(1, 71)]
    response = await post(fake, texts, dimensions=2)
    assert [entry["embedding"][0] for entry in response.json()["data"]] == list(range(1, 71))
    commands = fake.publisher.commands("embed")
    assert [len(command["inputs"]) for command in commands] == [32, 32, 6]
    assert {command["dimensions"] for command in commands} == {2}


def test_long_inputs_are_commands_of_their_own() -> None:
    body = EmbeddingRequest(model="embedding", input=["a" * 300_000, "b" * 90_000, "c" * 90_000])
    commands = list(body.commands())
    assert [[text[0] for text in command["inputs"]] for command in commands] == [["a", "b"], ["c"]]
    assert all(Embed.model_validate(command) for command in commands)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input.1"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"input_type": "query"}, "input_type"),
        ({"model": None}, "model"),
    ],
)
async def test_what_is_refused_names_its_field(gateway: OpenFakeGateway, fields: dict[str, Any], param: str) -> None:
    fake = gateway(SERVED)
    response = await post(fake, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert fake.publisher.commands("embed") == []


FAULTS = [
    ("model-unknown", 404, "model_not_found", "model"),
    ("prompt-too-long", 400, "context_length_exceeded", "input"),
    ("dimensions-unsupported", 400, "dimensions_unsupported", "dimensions"),
    ("embeddings-unconfigured", 501, "embeddings_unconfigured", None),
    ("server-away", 503, "server_away", None),
]


@pytest.mark.parametrize(("code", "status", "openai_code", "param"), FAULTS)
async def test_fault_of_the_worker(gateway: OpenFakeGateway, code: str, status: int, openai_code: str, param: str | None) -> None:
    response = await post(gateway(SERVED | {"embed": Fault(code=code, message="cause", step="embed")}))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, openai_code, param)
    assert (response.headers.get("x-should-retry"), "retry-after" in response.headers) == (
        "false" if status == 501 else None,
        status == 503,
    )


async def test_without_a_worker_it_is_501_with_the_settings(gateway: OpenFakeGateway) -> None:
    """The header keeps the official client from repeating it."""
    response = await post(gateway({}))
    assert (response.status_code, response.headers["x-should-retry"]) == (501, "false")
    assert "EMBEDDING_MODEL" in response.json()["error"]["message"]


async def test_while_its_worker_is_paused_it_is_503(gateway: OpenFakeGateway) -> None:
    response = await post(gateway({"embed.status": STATUS}))
    assert (response.status_code, response.json()["error"]["code"], response.headers["retry-after"]) == (503, "loading", "5")


async def test_response_above_the_share_of_the_memory_is_refused(gateway: OpenFakeGateway) -> None:
    """Before the other vectors are asked for."""
    large = {"vectors": [pack(*[0.5] * 1000)] * 32, "model_name": "tiny-bert", "prompt_tokens": 32}
    fake = gateway(SERVED | {"embed": large}, file_memory_bytes=1 << 20, max_file_bytes=1 << 18)
    response = await post(fake, ["x"] * 128)
    assert (response.status_code, len(fake.publisher.commands("embed"))) == (413, 1), response.text
    assert (response.json()["error"]["param"], "send fewer" in response.json()["error"]["message"]) == ("input", True)


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_2048_vectors_of_usual_sizes_are_answered(gateway: OpenFakeGateway, encoding: str) -> None:
    """Of 4096 numbers with the default memory, of which a tenth is given here for vectors of a tenth."""
    vectors = {"vectors": [pack(*[0.1] * 410)] * 32, "model_name": "tiny-bert", "prompt_tokens": 32}
    memory = GatewaySettings.model_fields["file_memory_bytes"].default // 10
    fake = gateway(SERVED | {"embed": vectors}, file_memory_bytes=memory, max_file_bytes=memory // 4)
    response = await post(fake, ["x"] * 2048, encoding_format=encoding)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert ([entry["index"] for entry in data], len(data[2047]["embedding"]) > 400) == (list(range(2048)), True)
    assert fake.services.file_memory.held_bytes == 0


@pytest.mark.parametrize(
    ("replies", "names"),
    [
        ({"embed.status": STATUS}, ["tiny-bert"]),
        ({"embed.status": Fault(code="loading", message="wait", step="embed.status")}, []),
        ({}, []),
    ],
)
async def test_model_is_listed(gateway: OpenFakeGateway, replies: dict[str, Replier], names: list[str]) -> None:
    models = (await gateway(replies).http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == names
