"""Sampling at the limits of its parameters, and of rows whose logits are no numbers: no row fails, and no other changes."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.engines.language.sampling import Sampling, choose_tokens, penalize
from actors.engines.language.text_model import TextModelEngine
from actors.engines.process.protocol import Failed, Finished
from tests.support.text_runs import chat, open_engine, texts

pytestmark = pytest.mark.models


@dataclass
class Row:
    sampling: Sampling
    output_ids: list[int] = field(default_factory=list)
    generator: Any = None

    def __post_init__(self) -> None:
        self.generator = self.sampling.generator()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TextModelEngine:
    return open_engine(tmp_path_factory.mktemp("tiny-llama"))


@pytest.mark.parametrize("smallest", [{"temperature": 1e-40}, {"temperature": 1.0, "top_p": 1e-50}, {"temperature": 5e-324}])
def test_smallest_values_give_the_likeliest_tokens(engine: TextModelEngine, smallest: dict[str, float]) -> None:
    neighbour = chat("neighbour", temperature=0.8, seed=1)
    assert texts(engine, chat("why?", seed=3, **smallest), neighbour) == texts(engine, chat("why?"), neighbour)


def test_smallest_repetition_penalty_gives_an_answer(engine: TextModelEngine) -> None:
    neighbour = chat("neighbour", temperature=0.8, seed=1)
    both = texts(engine, chat("why?", seed=3, temperature=1.0, repetition_penalty=1e-50), neighbour)
    assert both[1] == texts(engine, neighbour)[0]


@pytest.mark.parametrize("repetition_penalty", [1e-50, 1.0, 2.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3.4e38, -3.4e38, 0.0])
def test_each_row_gets_a_token_of_the_vocabulary(value: float, repetition_penalty: float) -> None:
    """Whatever the model's output is; the other row is not changed by it."""
    import torch

    likely = torch.tensor([0.0, 1.0, 3.0, 2.0])
    for sampling in (Sampling(1.0, 0.9, repetition_penalty), Sampling(1e-5, 1.0, repetition_penalty)):
        rows = [Row(sampling), Row(Sampling(temperature=1e-5))]
        seen = torch.zeros(2, 4, dtype=torch.bool)
        seen[0] = True
        first, second = choose_tokens(penalize(torch.stack([torch.full((4,), value), likely]), seen, rows), rows).tolist()
        assert 0 <= first < 4
        assert second == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_row_whose_output_is_no_number_fails_alone(engine: TextModelEngine, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """An overflow of half precision is as little a number as NaN is."""
    expected = texts(engine, chat("neighbour"))[0]
    sample = type(engine._batch)._sample

    def spoil(batch: Any, rows: list[Any], logits: Any, seen: Any) -> None:
        for number, row in enumerate(rows):
            if row.request_id == 7:
                logits[number] = value
        sample(batch, rows, logits, seen)

    monkeypatch.setattr(type(engine._batch), "_sample", spoil)
    engine.submit(7, chat("spoilt", temperature=1.0))
    engine.submit(8, chat("neighbour"))
    events: list[Any] = []
    while engine.idle_seconds() is not None:
        events.extend(engine.tick())
    assert [event.request_id for event in events if isinstance(event, Failed)] == [7]
    assert [event.result.text for event in events if isinstance(event, Finished)] == [expected]
