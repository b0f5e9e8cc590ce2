"""Public reports of servers without a list of models, or with one in another form, and of addresses that are nearly right."""

import asyncio
from typing import Any

import pytest

from actors.engines.language.requests import VlmRequest
from actors.engines.remote.openai_vlm import open_openai_vlm
from bus.errors import PermanentError
from ops.commands.doctor_models import check_model_servers
from tests.support.raw_openai_server import RawAnswer, completion, open_raw_server
from tests.support.server_lab import lab

pytestmark = pytest.mark.timeout(60)
NO_LIST = [
    pytest.param(RawAnswer(404, {"detail": "Not Found"}), id="nextcloud/integration_openai #44: 404"),
    pytest.param(RawAnswer(401, {"error": "no"}), id="the key may not list models: 401"),
    pytest.param(RawAnswer(403, {"error": "no"}), id="403"),
    pytest.param(RawAnswer(405), id="BoltAI/BoltAI #325: 405"),
    pytest.param(RawAnswer(500, {"error": "not implemented"}), id="500"),
    pytest.param(RawAnswer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"}), id="a page of HTML with 200"),
    pytest.param(RawAnswer(200, {"object": "list", "data": None}), id="data is null"),
    pytest.param(RawAnswer(200, {"object": "list", "data": []}), id="an empty list"),
    pytest.param(RawAnswer(200, b""), id="an empty body"),
]


@pytest.mark.parametrize("models", NO_LIST)
async def test_missing_list_of_models_is_no_reason_to_refuse(models: RawAnswer) -> None:
    """The named model is asked, by both engines; the vision engine is ready."""
    async with lab(lambda request: completion(f"from {request['model']}"), model="named") as rig:
        rig.server.models = models
        assert await rig.text() == "from named"
        assert (await rig.vlm.generate(VlmRequest("?"))).text == "from named"
        await rig.vlm.check()


async def test_missing_list_without_a_named_model_says_what_to_set() -> None:
    async with lab(lambda _: completion(), model=None) as text:
        text.server.models = RawAnswer(404)
        with pytest.raises(PermanentError, match="VLLM_MODEL must name one"):
            await text.text()


async def test_server_that_loads_is_waited_for() -> None:
    """ggml-org/llama.cpp: 503 `Loading model` from every route until the model is there; Retry-After may be a fraction."""
    async with lab(lambda _: completion()) as text:
        text.server.models = RawAnswer(503, {"error": {"code": 503, "message": "Loading model"}}, {"Retry-After": "0.01"})
        asking = asyncio.create_task(text.text())
        await asyncio.sleep(0.05)
        text.server.models = RawAnswer(200, {"data": [{"id": "m"}]})
        assert await asking == "hello"


@pytest.mark.parametrize(
    ("models", "requested", "used"),
    [
        pytest.param({"data": [{"id": "models/gemini-flash"}]}, "gemini-flash", "models/gemini-flash", id="Gemini lists names in a folder"),
        pytest.param({"data": [{"id": "other"}, {"id": "llama3:latest"}]}, "llama3", "llama3:latest", id="Ollama adds a tag"),
        pytest.param([{"id": "m", "object": "model"}], "m", "m", id="Together answers a plain list"),
        pytest.param({"models": [{"name": "m"}]}, "m", "m", id="a list under another name"),
        pytest.param({"data": ["m"]}, "m", "m", id="a list of names"),
        pytest.param({"data": [{"id": "only"}]}, "absent", "only", id="the first model, where the named one is not served"),
    ],
)
async def test_lists_of_models_in_other_forms(models: Any, requested: str, used: str) -> None:
    async with lab(lambda request: completion(request["model"]), model=requested) as text:
        text.server.models = RawAnswer(200, models)
        assert await text.text() == used


@pytest.mark.parametrize("status", [404, 405])
async def test_doctor_warns_of_a_server_without_a_list(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """OpenCoworkAI/open-codesign #179, EKKOLearnAI/hermes-studio #2503: a test of the connection calls such a server broken."""
    async with open_raw_server(lambda _: completion()) as server:
        server.models = RawAnswer(status)
        monkeypatch.setenv("VLLM_SERVER_URL", server.url)
        monkeypatch.setenv("VLLM_MODEL", "named")
        checks = [check for check in await check_model_servers() if check.name == "model-server-text"]
    (check,) = checks
    assert (check.ok, "named is asked all the same" in check.detail) == (True, True)


async def test_address_with_the_route_of_chats_is_understood() -> None:
    """intuitem/ciso-assistant-community PR #4610: the whole address of the chat route is pasted into the setting."""
    async with (
        open_raw_server(lambda _: completion()) as server,
        open_openai_vlm(f"{server.url}/chat/completions", None, "m", 5) as vlm,
    ):
        assert (await vlm.generate(VlmRequest("?"))).text == "hello"


async def test_missing_route_names_the_cure() -> None:
    """andrewyng/openworker PR #448: an address without `/v1` ends as 404."""
    async with lab(lambda _: RawAnswer(404, b"404 page not found")) as text:
        with pytest.raises(PermanentError, match="does its address end with /v1"):
            await text.text()
