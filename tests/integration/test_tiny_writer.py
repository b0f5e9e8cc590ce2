"""The trained tiny writer behind the server of transformers: slogans for the brief of an ad, in its language."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.jobs.orders import ad_copy_command
from ops.local.llm_server import LlmServer
from ops.local.stack import llm_server, stop_orphans
from ops.settings import LocalSettings
from training.scenes import Scene
from training.slogans import slogans

pytestmark = [pytest.mark.models, pytest.mark.timeout(240)]

SCENES = (Scene("star", "yellow", "blue"), Scene("heart", "red", "white"), Scene("moon", "grey", "black"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmServer]:
    server = llm_server(tmp_path_factory.mktemp("local"))
    server.start()
    yield server
    server.stop()


def generate_slogan(server: LlmServer, brief: str) -> str:
    response = httpx.post(f"{server.url}/chat/completions", json={"model": "atelier/tiny-writer"} | ad_copy_command(brief), timeout=60)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.captions[2])
def test_tiny_writer_describes_scene_in_brief_language(server: LlmServer, scene: Scene) -> None:
    assert generate_slogan(server, scene.captions[0]) in slogans(scene, korean=False)
    assert generate_slogan(server, scene.captions[4]) in slogans(scene, korean=True)


def test_tiny_writer_samples_different_lines(server: LlmServer) -> None:
    assert len({generate_slogan(server, SCENES[0].captions[0]) for _ in range(8)}) >= 3


def test_running_text_server_is_reused_and_stopped_with_orphans(server: LlmServer) -> None:
    """A second start is no second server; `atelier down` ends one that nobody stopped."""
    second = LlmServer(server.folder, Path("nowhere"))
    second.start()
    assert second.url == server.url
    stop_orphans(LocalSettings.model_validate({"ATELIER_LOCAL_FOLDER": server.folder.parent}))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/models")
    server.start()
    assert generate_slogan(server, SCENES[0].captions[0]) in slogans(SCENES[0], korean=False)
