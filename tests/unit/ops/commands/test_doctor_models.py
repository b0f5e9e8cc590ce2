"""The doctor asks each configured model server for its health and its models, and fails when it is dead."""

import socket
from collections.abc import AsyncIterator

import pytest

from ops.commands.doctor_host import Check
from ops.commands.doctor_models import check_model_servers
from tests.support.fake_openai_server import FakeOpenAiServer, open_fake_openai_server

VARIABLES = ("VLLM_SERVER_URL", "VLM_BASE_URL", "OPENAI_BASE_URL", "VLM_ENGINE", "TEXT_ENGINE", "VLLM_MODEL", "VLM_MODEL")


@pytest.fixture(autouse=True)
def _no_model_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def server() -> AsyncIterator[FakeOpenAiServer]:
    async with open_fake_openai_server() as fake:
        yield fake


def dead_url() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/v1"


async def check_text_server() -> Check:
    (check,) = await check_model_servers()
    assert check.name == "model-server-text"
    return check


async def test_live_server_passes_and_its_models_are_named(server: FakeOpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT_ENGINE", "openai")
    monkeypatch.setenv("VLLM_SERVER_URL", server.url)
    monkeypatch.setenv("VLLM_MODEL", "second")
    monkeypatch.setenv("VLLM_API_KEY", "secret-word")

    check = await check_text_server()

    assert (check.ok, check.warning, check.cure) == (True, False, "")
    assert check.detail == f"{server.url} answers, serves first, second"
    assert server.authorization_headers == {"Bearer secret-word"}


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"TEXT_ENGINE": "openai", "VLLM_SERVER_URL": ""}, ["model-server-text"]),
        ({"VLM_BASE_URL": ""}, ["model-server-consult", "model-server-judge", "model-server-validate"]),
        ({"OPENAI_BASE_URL": ""}, ["model-server-consult", "model-server-judge", "model-server-validate"]),
        ({"VLM_ENGINE": "openai", "VLM_BASE_URL": ""}, ["model-server-consult", "model-server-judge", "model-server-validate"]),
        ({"JUDGE_ENGINE": "openai", "JUDGE_BASE_URL": ""}, ["model-server-judge"]),
    ],
)
async def test_dead_server_of_each_setting_fails(variables: dict[str, str], names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = dead_url()
    for name, value in variables.items():
        monkeypatch.setenv(name, value or url)

    checks = await check_model_servers()

    assert [check.name for check in checks] == names
    for check in checks:
        assert not check.ok
        assert check.detail.startswith(f"{url}: does not answer")
        assert "start that server" in check.cure


async def test_loading_server_fails(server: FakeOpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_URL", server.url)
    server.health_status = 503

    check = await check_text_server()

    assert not check.ok
    assert "/health answers 503" in check.detail
    assert "wait until it has loaded its model" in check.cure


async def test_server_without_health_route_is_known_by_its_models(server: FakeOpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_URL", server.url)
    server.health_status = 404
    assert (await check_text_server()).ok
    server.models = ()
    assert "serves no model yet" in (await check_text_server()).detail


async def test_model_that_is_not_served_is_a_warning(server: FakeOpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_ENGINE", "openai")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("VLM_MODEL", "third")
    monkeypatch.setenv("JUDGE_MODEL", "second")

    checks = {check.name: check for check in await check_model_servers()}

    assert all(check.ok for check in checks.values())
    assert not checks["model-server-judge"].warning
    warning = checks["model-server-consult"]
    assert warning.warning
    assert "serves first, second, and not third: first is used instead" in warning.detail
    assert "VLM_MODEL" in warning.cure


async def test_server_that_no_engine_calls_is_a_warning(server: FakeOpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_BASE_URL", server.url)
    checks = await check_model_servers()
    assert [(check.ok, check.warning) for check in checks] == [(True, True)] * 3
    assert "VLM_ENGINE=openai" in checks[0].cure


async def test_engine_without_server_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await check_model_servers() == []
    monkeypatch.setenv("TEXT_ENGINE", "openai")
    check = await check_text_server()
    assert not check.ok
    assert "VLLM_SERVER_URL is not set" in check.detail


@pytest.mark.parametrize(("url", "problem"), [("vllm-server:8000/v1", "does not answer"), ("http://[nowhere/v1", "does not answer")])
async def test_invalid_address_is_reported(url: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_URL", url)
    check = await check_text_server()
    assert not check.ok
    assert problem in check.detail
    assert "ends with /v1" in check.cure


async def test_password_of_address_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_URL", dead_url().replace("//", "//user:secret-word@"))
    assert "secret-word" not in repr(await check_text_server())
