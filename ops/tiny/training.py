"""One training, from nothing to its end: resumable, with its seeds fixed, its progress shown, the weights' running mean as its result."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = structlog.get_logger()

WARM_STEPS, KEEP_EVERY = 100, 100
LEAST_RATE = 0.01
"""Of the full learning rate, at the end."""


@dataclass(frozen=True)
class Course:
    """What is trained and how. `loss` draws its own examples with the dice and says how wrong the model is."""

    name: str
    parameters: Sequence[Any]
    loss: Callable[[Random], Any]
    steps: int
    rate: float = 1e-3
    mean: float = 0.998
    seed: int = 0


def train(course: Course, folder: Path) -> None:
    """Run the course to its end, from where an earlier run left it in `folder`. The parameters hold the running mean then."""
    import torch

    state = folder / f"{course.name}.pt"
    optimizer = torch.optim.AdamW(course.parameters, lr=course.rate, betas=(0.9, 0.99), weight_decay=0.01)
    means = [parameter.detach().clone() for parameter in course.parameters]
    dice, done = Random(course.seed), 0
    torch.manual_seed(course.seed)
    if state.exists():
        done = _resume(torch.load(state, weights_only=False), course, optimizer, means, dice)
        log.info("training.resumed", model=course.name, step=done)
    with _progress() as bar:
        task = bar.add_task(course.name, total=course.steps, completed=done, loss=math.nan)
        for step in range(done, course.steps):
            loss = _step(course, optimizer, means, dice, step)
            bar.update(task, completed=step + 1, loss=loss)
            if (step + 1) % KEEP_EVERY == 0:
                log.debug("training.step", model=course.name, step=step + 1, loss=round(loss, 4))
                _keep(state, course, optimizer, means, dice, step + 1)
    with torch.no_grad():
        for parameter, mean in zip(course.parameters, means, strict=True):
            parameter.copy_(mean)


def _step(course: Course, optimizer: Any, means: list[Any], dice: Random, step: int) -> float:
    import torch

    optimizer.param_groups[0]["lr"] = course.rate * slope(step, course.steps)
    loss = course.loss(dice)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(course.parameters, 1.0)
    optimizer.step()
    weight = min(course.mean, (step + 1) / (step + 20))
    with torch.no_grad():
        torch._foreach_mul_(means, weight)
        torch._foreach_add_(means, list(course.parameters), alpha=1 - weight)
    return float(loss.detach())


def slope(step: int, steps: int) -> float:
    """Up in a line, down in a cosine."""
    falling = LEAST_RATE + (1 - LEAST_RATE) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_STEPS) * falling


def _keep(state: Path, course: Course, optimizer: Any, means: list[Any], dice: Random, step: int) -> None:
    import torch

    state.parent.mkdir(parents=True, exist_ok=True)
    fresh = state.with_suffix(".new")
    kept = {"parameters": [parameter.detach() for parameter in course.parameters], "means": means, "optimizer": optimizer.state_dict()}
    torch.save(kept | {"dice": dice.getstate(), "noise": torch.get_rng_state(), "step": step}, fresh)
    fresh.replace(state)


def _resume(kept: dict[str, Any], course: Course, optimizer: Any, means: list[Any], dice: Random) -> int:
    import torch

    with torch.no_grad():
        for ours, theirs in (*zip(course.parameters, kept["parameters"], strict=True), *zip(means, kept["means"], strict=True)):
            ours.copy_(theirs)
    optimizer.load_state_dict(kept["optimizer"])
    dice.setstate(kept["dice"])
    torch.set_rng_state(kept["noise"])
    return int(kept["step"])


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty())
