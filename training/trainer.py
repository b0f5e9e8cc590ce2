"""One training run: resumable, with a fixed seed and a progress bar; the result is the exponential moving average of the weights."""

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

WARMUP_STEPS, CHECKPOINT_EVERY = 100, 100
MIN_LEARNING_RATE_FACTOR = 0.01
"""The last learning rate as a share of the full one."""


@dataclass(frozen=True)
class TrainingRun:
    """`loss` draws its own examples with the random generator. `name` is also that of the state file."""

    name: str
    parameters: Sequence[Any]
    loss: Callable[[Random], Any]
    steps: int
    learning_rate: float = 1e-3
    ema_decay: float = 0.998
    seed: int = 0


def train(run: TrainingRun, folder: Path) -> None:
    """Train to the end, from the state of an interrupted run in `folder` if any. The parameters then hold their moving average."""
    import torch

    state_file = folder / f"{run.name}.pt"
    optimizer = torch.optim.AdamW(run.parameters, lr=run.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    means = [parameter.detach().clone() for parameter in run.parameters]
    rng, done = Random(run.seed), 0
    torch.manual_seed(run.seed)
    if state_file.exists():
        done = _load_state(torch.load(state_file, weights_only=False), run, optimizer, means, rng)
        log.info("training.resumed", model=run.name, step=done)
    with _progress() as bar:
        task = bar.add_task(run.name, total=run.steps, completed=done, loss=math.nan)
        for step in range(done, run.steps):
            loss = _train_step(run, optimizer, means, rng, step)
            bar.update(task, completed=step + 1, loss=loss)
            if (step + 1) % CHECKPOINT_EVERY == 0:
                log.debug("training.step", model=run.name, step=step + 1, loss=round(loss, 4))
                _save_state(state_file, run, optimizer, means, rng, step + 1)
    with torch.no_grad():
        for parameter, mean in zip(run.parameters, means, strict=True):
            parameter.copy_(mean)


def _train_step(run: TrainingRun, optimizer: Any, ema_parameters: list[Any], rng: Random, step: int) -> float:
    import torch

    optimizer.param_groups[0]["lr"] = run.learning_rate * learning_rate_factor(step, run.steps)
    loss = run.loss(rng)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.parameters, 1.0)
    optimizer.step()
    weight = min(run.ema_decay, (step + 1) / (step + 20))
    with torch.no_grad():
        torch._foreach_mul_(ema_parameters, weight)
        torch._foreach_add_(ema_parameters, list(run.parameters), alpha=1 - weight)
    return float(loss.detach())


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, cosine decay."""
    decay = MIN_LEARNING_RATE_FACTOR + (1 - MIN_LEARNING_RATE_FACTOR) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARMUP_STEPS) * decay


def _save_state(state_file: Path, run: TrainingRun, optimizer: Any, ema_parameters: list[Any], rng: Random, step: int) -> None:
    import torch

    state_file.parent.mkdir(parents=True, exist_ok=True)
    temporary = state_file.with_suffix(".new")
    state = {
        "parameters": [parameter.detach() for parameter in run.parameters],
        "means": ema_parameters,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state | {"dice": rng.getstate(), "noise": torch.get_rng_state(), "step": step}, temporary)
    temporary.replace(state_file)


def _load_state(state: dict[str, Any], run: TrainingRun, optimizer: Any, ema_parameters: list[Any], rng: Random) -> int:
    import torch

    with torch.no_grad():
        for current, saved in (*zip(run.parameters, state["parameters"], strict=True), *zip(ema_parameters, state["means"], strict=True)):
            current.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    rng.setstate(state["dice"])
    torch.set_rng_state(state["noise"])
    return int(state["step"])


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty())
