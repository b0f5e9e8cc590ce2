"""The trained tiny writer in the real engine: slogans for the brief of an ad, in its language. A wrong chat template gives wrong lines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.engines.language.requests import GenerationRequest, TextModelOptions
from actors.engines.language.text_model import TextModelEngine, open_text_model
from actors.engines.process.protocol import Finished
from gateway.jobs.orders import ad_copy_command
from ops.local.tiny_models import CHECKPOINTS, TINY_LLM
from tests.support.engine_fixture import silent_host
from training.scenes import Scene
from training.slogans import slogans

pytestmark = pytest.mark.models

SCENES = (Scene("star", "yellow", "blue"), Scene("heart", "red", "white"), Scene("moon", "grey", "black"))


@pytest.fixture(scope="module")
def writer() -> Iterator[TextModelEngine]:
    options = TextModelOptions(str(CHECKPOINTS / TINY_LLM), device="cpu", threads=1, max_rows=16)
    engine = open_text_model(options, silent_host(Path()))
    engine.self_test()
    yield engine
    engine.close()


def write_slogans(writer: TextModelEngine, briefs: list[str]) -> list[str]:
    for seed, brief in enumerate(briefs):
        command = ad_copy_command(brief)
        writer.submit(seed, GenerationRequest(command["messages"], command["max_tokens"], temperature=0.7, top_p=0.9, seed=seed))
    texts: dict[int, str] = {}
    while writer.idle_seconds() is not None:
        texts |= {event.request_id: event.result.text for event in writer.tick() if isinstance(event, Finished)}
    return [texts[seed] for seed in range(len(briefs))]


def test_tiny_writer_describes_scene_in_brief_language(writer: TextModelEngine) -> None:
    lines = write_slogans(writer, [scene.captions[number] for scene in SCENES for number in (2, 4)])
    for scene, english, korean in zip(SCENES, lines[::2], lines[1::2], strict=True):
        assert english in slogans(scene, korean=False)
        assert korean in slogans(scene, korean=True)


def test_tiny_writer_samples_different_lines(writer: TextModelEngine) -> None:
    assert len(set(write_slogans(writer, [SCENES[0].captions[0]] * 8))) >= 3
