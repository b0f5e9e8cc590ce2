"""A training goes on where it was left, as if nothing had happened."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from ops.tiny import training
from ops.tiny.training import Course, slope, train


class Interrupted(Exception):
    pass


def line(steps: int, fails_at: int | None = None) -> tuple[Any, Course]:
    """Learns to double a number; noise and dice both matter."""
    torch.manual_seed(7)
    model, seen = torch.nn.Linear(1, 1), [0]

    def loss(dice: Random) -> Any:
        seen[0] += 1
        if seen[0] == fails_at:
            raise Interrupted
        number = torch.tensor([[dice.random()]]) + 0.01 * torch.randn(1, 1)
        return (model(number) - 2 * number).pow(2).mean()

    return model, Course("line", list(model.parameters()), loss, steps, rate=0.05, mean=0.9)


@pytest.fixture(autouse=True)
def kept_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "KEEP_EVERY", 10)


def test_what_was_interrupted_ends_as_what_was_not(tmp_path: Path) -> None:
    whole, course = line(200)
    train(course, tmp_path / "whole")
    _, course = line(200, fails_at=95)
    with pytest.raises(Interrupted):
        train(course, tmp_path / "halved")
    halved, course = line(200)
    train(course, tmp_path / "halved")
    assert torch.equal(whole.weight, halved.weight)
    assert torch.equal(whole.bias, halved.bias)


def test_it_learns(tmp_path: Path) -> None:
    model, course = line(400)
    train(course, tmp_path)
    assert model(torch.tensor([[0.5]])).item() == pytest.approx(1.0, abs=0.1)


def test_a_course_that_is_over_is_not_run_again(tmp_path: Path) -> None:
    train(line(20)[1], tmp_path)
    model, course = line(20, fails_at=1)
    train(course, tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_rate_rises_and_falls() -> None:
    rates = [slope(step, 1000) for step in range(1000)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(rates[99], abs=0.02)
    assert rates[-1] < 0.02
