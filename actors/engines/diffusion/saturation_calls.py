"""Calls of a loaded model with rows of noise, by which the engine finds how many rows of one call pay."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from actors.engines.diffusion.batching import predict
from actors.engines.diffusion.checkpoint_check import build_test_row
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.request_check import resolve_request
from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.diffusion.saturation import Saturation, measure_saturation, time_calls
from actors.engines.process.gpu import free_memory

SMALL_SIDES = (64, 128)
"""Pixels of the pictures from whose calls the duration at the model's own size is estimated."""


@dataclass(frozen=True)
class TimedCall:
    """`call` makes one call with so many rows, each a picture of `tokens` latent tokens, and returns when it is computed."""

    tokens: int
    call: Callable[[int], object]


def measure_model(family: Family, max_rows: int, budget_seconds: float, clock: Callable[[], float] = time.perf_counter) -> Saturation:
    """The cost of calls at the model's own size and default guidance, within a budget of time.

    On a slow device no call is begun that is expected to exceed the budget; then the result says that nothing is known.
    """
    import torch

    began = clock()
    with torch.inference_mode():
        own = open_call(family, family.own_side)
        expected = 0.0
        if family.own_side > max(SMALL_SIDES):
            small, larger = (open_call(family, side) for side in SMALL_SIDES)
            seconds = time_calls(small.call, 1, clock)
            if 4 * (clock() - began) > budget_seconds:
                return Saturation(own.tokens, {}, "time")
            growth = max(0.0, time_calls(larger.call, 1, clock) - seconds) / (larger.tokens - small.tokens)
            expected = seconds + growth * (own.tokens - small.tokens)
        saturation = measure_saturation(own.call, own.tokens, max_rows, budget_seconds - (clock() - began), expected, clock)
    if saturation.stopped_by == "memory":
        free_memory()
    return saturation


def open_call(family: Family, side: int) -> TimedCall:
    """A row of noise with the defaults of the model, as often as a call has rows."""
    request = resolve_request(DiffusionRequest("a photo", seed=1, width=side, height=side), family, side)
    row = build_test_row(family, request, family.encode(request))

    def call(rows: int) -> object:
        predictions = predict(family, [row] * rows, lambda _: None)
        return float(predictions[0].flatten()[0])  # waits for the device

    return TimedCall(family.count_tokens(request), call)
