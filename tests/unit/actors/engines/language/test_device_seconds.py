"""Device seconds of the rows of the language engines, on tiny models: their sum is the busy time, and more work costs more."""

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from actors.engines.language.engine import LanguageEngine
from actors.engines.language.requests import GenerationRequest, TextModelOptions, VlmOptions, VlmRequest
from actors.engines.language.text_model import open_text_model
from actors.engines.language.tiny_llama import write_tiny_llama
from actors.engines.language.tiny_llava import write_tiny_llava
from actors.engines.language.vision_model import open_engine
from actors.engines.process.device_time import DeviceTime
from actors.engines.process.protocol import Failed, Finished
from bus.errors import PermanentError
from tests.support.engine_fixture import silent_host
from tests.unit.actors.engines.language.test_language_engine import png

pytestmark = [pytest.mark.models]
CLOCK = time.process_time
"""It does not run for other processes, which may come between two readings of it."""
RELATIVE_ERROR = 0.02


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers, so that a step takes milliseconds, of which the measuring itself is a small part."""
    folder = tmp_path_factory.mktemp("text")
    write_tiny_llama(folder, hidden_size=128, num_layers=6)
    return folder


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    write_tiny_llava(folder, hidden_size=128, num_layers=6)
    return folder


def open_text(folder: Path, **changes: object) -> LanguageEngine:
    options = TextModelOptions(str(folder), window_seconds=0, threads=1, **changes)  # type: ignore[arg-type]
    engine = open_text_model(options, silent_host(folder))
    engine.self_test()
    engine.device_time = DeviceTime("cpu", CLOCK)
    return engine


def open_vision(folder: Path) -> LanguageEngine:
    engine = open_engine(VlmOptions(str(folder), window_seconds=0, threads=1, max_rows=4), silent_host(folder))
    engine.self_test()
    engine.device_time = DeviceTime("cpu", CLOCK)
    return engine


def chat(words: int, tokens: int, **fields: object) -> GenerationRequest:
    message = {"role": "user", "content": "harbour " * words}
    return GenerationRequest([message], max_tokens=tokens, temperature=0, top_p=1, **fields)  # type: ignore[arg-type]


def random_text_request(rng: random.Random) -> GenerationRequest:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}} if rng.random() < 0.2 else None
    return chat(rng.randrange(1, 60), rng.randrange(16, 60), schema=schema, stream=rng.random() < 0.5)


def random_vision_request(rng: random.Random) -> VlmRequest:
    images = (png(rng.randrange(9)),) if rng.random() < 0.5 else ()
    return VlmRequest("why " * rng.randrange(1, 20), images=images, max_new_tokens=rng.randrange(4, 40))


def run_mix(engine: LanguageEngine, requests: list[object], rng: random.Random) -> tuple[float, Counter[int], Counter[str]]:
    """Submit at random moments, cancel some, and tick to the end: the seconds of the ticks, those charged, and how the requests ended."""
    waiting, tick_seconds, charged, ends = list(enumerate(requests, 1)), 0.0, Counter[int](), Counter[str]()
    while waiting or engine.idle_seconds() is not None:
        while waiting and rng.random() < 0.4:
            number, request = waiting.pop()
            try:
                engine.submit(number, request)
            except PermanentError:
                ends["refused"] += 1
        if rng.random() < 0.05 and engine.cancel(rng.randrange(1, len(requests) + 1)):
            ends["cancelled"] += 1
        if engine.idle_seconds() is None:
            continue
        started = CLOCK()
        events = engine.tick()
        tick_seconds += CLOCK() - started
        ends.update(type(event).__name__ for event in events if isinstance(event, Finished | Failed))
        charged.update(engine.device_time.take()[1])
    return tick_seconds, charged, ends


@pytest.mark.parametrize("seed", range(3))
def test_text_rows_of_a_random_mix_cost_the_busy_time(text_model: Path, seed: int) -> None:
    """Long prompts, schemas, streams, refusals and cancels."""
    rng, engine = random.Random(seed), open_text(text_model, max_rows=4, part_tokens=128)
    requests: list[object] = [random_text_request(rng) for _ in range(16)]
    tick_seconds, charged, ends = run_mix(engine, requests, rng)

    assert sum(charged.values()) == pytest.approx(tick_seconds, rel=RELATIVE_ERROR)
    assert charged.keys() <= set(range(1, 17))
    assert ends["Finished"]
    assert sum(ends.values()) == len(requests)


@pytest.mark.parametrize("seed", range(2))
def test_vision_rows_of_a_random_mix_cost_the_busy_time(vision_model: Path, seed: int) -> None:
    rng, engine = random.Random(seed), open_vision(vision_model)
    requests: list[object] = [random_vision_request(rng) for _ in range(10)]
    tick_seconds, charged, ends = run_mix(engine, requests, rng)

    assert sum(charged.values()) == pytest.approx(tick_seconds, rel=RELATIVE_ERROR)
    assert ends["Finished"]
    assert sum(ends.values()) == len(requests)


def run_alone(engine: LanguageEngine, *requests: object) -> dict[int, float]:
    for number, request in enumerate(requests, 1):
        engine.submit(number, request)
    while engine.idle_seconds() is not None:
        engine.tick()
    return engine.device_time.take()[1]


def test_a_row_with_twice_the_tokens_costs_about_twice(text_model: Path) -> None:
    """Alone after one another, and of the same size together. No token ends an answer."""
    engine = open_text(text_model, max_rows=8)
    engine._batch._stop_token_ids = frozenset()
    run_alone(engine, chat(4, 40))
    rounds = [[run_alone(engine, chat(4, tokens))[1] for tokens in (60, 120)] for _ in range(3)]
    one, two = map(min, zip(*rounds, strict=True))
    assert two / one == pytest.approx(2, rel=0.35)

    together = run_alone(engine, chat(4, 60), chat(4, 60))
    assert together[1] == pytest.approx(together[2], rel=0.1)


def test_a_failed_row_is_charged(text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails is charged to its rows, and so are their second attempts, each alone."""
    engine = open_text(text_model, max_rows=4)
    engine.device_time = DeviceTime("cpu")
    decode_step = engine._batch.decode_step

    def fail() -> None:
        decode_step()
        time.sleep(0.05)
        raise ValueError("the step fails")

    monkeypatch.setattr(engine._batch, "decode_step", fail)
    charged = run_alone(engine, chat(2, 8), chat(2, 8))
    assert charged.keys() == {1, 2}
    assert sum(charged.values()) > 0.05
