"""A training run: resumed after an interruption, with the same result as without one."""

from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from training import trainer
from training.trainer import TrainingRun, learning_rate_factor, train


class TrainingInterrupted(Exception):
    pass


def linear_model_run(steps: int, fails_at: int | None = None) -> tuple[Any, TrainingRun]:
    """Learns to double a number, with Python's and with torch's random numbers."""
    torch.manual_seed(7)
    model, calls = torch.nn.Linear(1, 1), count(1)

    def loss(rng: Random) -> Any:
        if next(calls) == fails_at:
            raise TrainingInterrupted
        number = torch.tensor([[rng.random()]]) + 0.01 * torch.randn(1, 1)
        return (model(number) - 2 * number).pow(2).mean()

    return model, TrainingRun("line", list(model.parameters()), loss, steps, learning_rate=0.05, ema_decay=0.9)


@pytest.fixture(autouse=True)
def checkpoint_every_ten_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 10)


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    uninterrupted, run = linear_model_run(200)
    train(run, tmp_path / "uninterrupted")
    _, run = linear_model_run(200, fails_at=95)
    with pytest.raises(TrainingInterrupted):
        train(run, tmp_path / "resumed")
    resumed, run = linear_model_run(200)
    train(run, tmp_path / "resumed")
    assert torch.equal(uninterrupted.weight, resumed.weight)
    assert torch.equal(uninterrupted.bias, resumed.bias)


def test_training_converges(tmp_path: Path) -> None:
    model, run = linear_model_run(400)
    train(run, tmp_path)
    assert model(torch.tensor([[0.5]])).item() == pytest.approx(1.0, abs=0.1)


def test_finished_run_is_not_repeated(tmp_path: Path) -> None:
    train(linear_model_run(20)[1], tmp_path)
    model, run = linear_model_run(20, fails_at=1)
    train(run, tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate_factor(step, 1000) for step in range(1000)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(rates[99], abs=0.02)
    assert rates[-1] < 0.02
