"""The trained writer behind the server of transformers, asked as an ad's first step asks: lines about the order, in its language."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.orders import copy_order
from ops.local.stack import stop_leftovers, writing_server
from ops.local.writing_server import WritingServer
from ops.settings import LocalSettings
from ops.tiny.scenes import Scene
from ops.tiny.slogans import slogans

pytestmark = [pytest.mark.models, pytest.mark.timeout(240)]

SCENES = (Scene("star", "yellow", "blue"), Scene("heart", "red", "white"), Scene("moon", "grey", "black"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WritingServer]:
    server = writing_server(tmp_path_factory.mktemp("local"))
    server.start()
    yield server
    server.stop()


def line(server: WritingServer, brief: str) -> str:
    answer = httpx.post(f"{server.url}/chat/completions", json={"model": "atelier/tiny-writer"} | copy_order(brief), timeout=60)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.captions[2])
def test_it_writes_about_the_scene_in_the_language_of_the_brief(server: WritingServer, scene: Scene) -> None:
    assert line(server, scene.captions[0]) in slogans(scene, korean=False)
    assert line(server, scene.captions[4]) in slogans(scene, korean=True)


def test_one_brief_is_not_always_answered_alike(server: WritingServer) -> None:
    assert len({line(server, SCENES[0].captions[0]) for _ in range(8)}) >= 3


def test_it_is_taken_over_and_found_again_by_whoever_sweeps_up(server: WritingServer) -> None:
    """As the other parts are: a second start is no second server; `atelier down` ends one that nobody ended."""
    again = WritingServer(server.folder, Path("nowhere"))
    again.start()
    assert again.url == server.url
    stop_leftovers(LocalSettings.model_validate({"ATELIER_LOCAL_FOLDER": server.folder.parent}))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/models")
    server.start()
    assert line(server, SCENES[0].captions[0]) in slogans(SCENES[0], korean=False)
