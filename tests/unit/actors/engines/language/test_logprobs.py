"""Log probabilities: those of the model, whatever the sampling does; as long as the text, in the stream and at the end."""

import json
from pathlib import Path

import pytest

from actors.engines.language.text_model import TextModelEngine
from tests.support.text_runs import chat, generate, open_engine, run

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TextModelEngine:
    return open_engine(tmp_path_factory.mktemp("tiny-llama"))


def model_logprobs(engine: TextModelEngine, text: str, answer: list[int]) -> list[list[float]]:
    """Of all tokens at each place of an answer, from one call of the model."""
    import torch

    prompt, _ = engine._tokenize(chat(text))
    with torch.inference_mode():
        logits = engine._model(input_ids=torch.cat([prompt, torch.tensor(answer)])[None]).logits[0]
    values: list[list[float]] = logits[len(prompt) - 1 : -1].log_softmax(-1).tolist()
    return values


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.5, "seed": 3, "top_p": 0.5, "repetition_penalty": 1.8, "presence_penalty": 1.0}]
)
def test_values_are_those_of_the_model(engine: TextModelEngine, sampling: dict[str, float]) -> None:
    """Before penalties, temperature and top-p; also beside rows that want none."""
    request = chat("tell", 16, logprobs=3, **sampling)
    response = generate(engine, request, chat("other", 20), chat("third", 9, logprobs=0))[0]
    assert b"".join(bytes(entry.bytes or ()) for entry in response.logprobs).decode(errors="replace") == response.text
    answer = [engine._grammars.vocabulary.index(bytes(entry.bytes or ())) for entry in response.logprobs]
    assert len(answer) == 16
    for entry, token, expected in zip(response.logprobs, answer, model_logprobs(engine, "tell", answer), strict=True):
        assert entry.logprob == pytest.approx(expected[token], abs=1e-4)
        assert [other.logprob for other in entry.top] == pytest.approx(sorted(expected, reverse=True)[:3], abs=1e-4)


def test_grammar_does_not_change_them(engine: TextModelEngine) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    response = generate(engine, chat("tell", 60, logprobs=1, schema=schema))[0]
    assert "".join(entry.text for entry in response.logprobs) == response.text
    assert json.loads(response.text).keys() == {"ok"}
    answer = [engine._grammars.vocabulary.index(bytes(entry.bytes or ())) for entry in response.logprobs]
    expected = model_logprobs(engine, "tell", answer)
    assert [entry.logprob for entry in response.logprobs] == pytest.approx(
        [row[token] for row, token in zip(expected, answer, strict=True)], abs=1e-4
    )
    assert response.logprobs[0].logprob < response.logprobs[0].top[0].logprob, "the likeliest token is no JSON"


def test_stop_sequence_cuts_them_with_the_text(engine: TextModelEngine) -> None:
    whole = generate(engine, chat("tell", 40, logprobs=0))[0]
    stop = whole.text[10:13]
    cut = generate(engine, chat("tell", 40, logprobs=0, stop=(stop,)))[0]
    assert cut.finish_reason == "stop"
    assert cut.logprobs == whole.logprobs[: len(cut.logprobs)]
    assert b"".join(bytes(entry.bytes or ()) for entry in cut.logprobs).decode(errors="replace") == cut.text


def test_stream_has_each_once(engine: TextModelEngine) -> None:
    (response,), reports = run(engine, [chat("tell", 40, logprobs=2, stream=True, temperature=0.9, seed=2)])
    assert [report.logprobs_start for report in reports[0]] == [
        sum(len(other.logprobs) for other in reports[0][:number]) for number in range(len(reports[0]))
    ]
    streamed = [entry for report in reports[0] for entry in report.logprobs]
    assert tuple(streamed) == response.logprobs[: len(streamed)]
    assert len(response.logprobs) - len(streamed) <= 8


def test_alternatives_name_special_tokens(engine: TextModelEngine) -> None:
    entry = generate(engine, chat("tell", 1, logprobs=20))[0].logprobs[0]
    everything = generate(engine, chat("tell", 1, logprobs=261))[0].logprobs[0].top
    assert {"</s>", "<|turn|>"} <= {other.text for other in everything}
    assert list(entry.top) == everything[:20]


def test_none_are_measured_where_none_are_wanted(engine: TextModelEngine, tmp_path: Path) -> None:
    assert generate(engine, chat("tell", 5))[0].logprobs == ()
