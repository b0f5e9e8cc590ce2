"""The families in `atelier bench gpu`: calls with 1, 2, 4 and 8 rows at 512 and 1024 pixels, decoding, and the peak of the memory.

`python -m benchmarks.gpu_families NAME …` measures families in a process of its own, whose memory is free when it has ended.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.family_costs import ROWS, median_seconds, relative_costs, time_rows
from benchmarks.full_size_families import SIDES, build_family

ALL_SECONDS = 360.0
"""The longest time of all families together, in which their weights are made; with the other parts it is less than ten minutes."""
ROUNDS = 3


def measure_families(*, tiny: bool) -> dict[str, Any]:
    """Name → figures of the family, or `problem`: one that takes too much memory or time does not end the others.

    At the real size each has a process of its own.
    """
    until = time.monotonic() + ALL_SECONDS
    groups = [tuple(SIDES)] if tiny else [(name,) for name in SIDES]
    return {name: figures for group in groups for name, figures in measure_in_subprocess(group, until, tiny=tiny).items()}


def measure_in_subprocess(names: Sequence[str], until: float, *, tiny: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu_families", *names, *(["--tiny"] if tiny else [])]
    try:
        result = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return {name: {"problem": f"the families took longer than {ALL_SECONDS:g} s"} for name in names}
    if result.returncode:
        problem = f"its process ended with {result.returncode}; the standard error has the cause"
        return {name: {"problem": problem} for name in names}
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def measure_family(name: str, *, tiny: bool) -> dict[str, Any]:
    """`sizes`: size → rows → seconds of a call and its cost relative to one row, seconds of decoding one picture, bytes at the peak.

    Sizes whose calls run out of memory have `problem`.
    """
    import torch

    from actors.engines.process.gpu import choose_device

    device = choose_device("auto")
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    began = time.perf_counter()
    family = build_family(name, device, dtype, tiny=tiny)
    parts = {part: module for part, module in family.pipeline.components.items() if isinstance(module, torch.nn.Module)}
    sizes = {}
    for side in (64,) if tiny else SIDES[name]:
        sizes[f"{side}×{side}"] = measure_size(family, side)
    return {
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": {part: sum(weight.numel() for weight in module.parameters()) for part, module in parts.items()},
        "steps": family.defaults.steps,
        "sizes": sizes,
        "seconds": round(time.perf_counter() - began, 1),
    }


def measure_size(family: Any, side: int) -> dict[str, Any]:
    """With fewer rows where the memory does not suffice; the peak is that of the calls that did, and of decoding."""
    import torch

    from actors.engines.diffusion.oom import run_catching_oom
    from actors.engines.process.gpu import free_memory

    on_gpu = family.device.type == "cuda"
    figures: dict[str, Any] = {}
    for most in reversed(ROWS):
        free_memory()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        rows = tuple(count for count in ROWS if count <= most)
        timed, out_of_memory = run_catching_oom(lambda rows=rows: time_rows(family, side, rows, ROUNDS))  # type: ignore[misc]
        if not out_of_memory:
            figures = {"call_seconds": median_seconds(timed[0]), "relative_cost": relative_costs(timed[0])}
            break
    decoded, out_of_memory = run_catching_oom(lambda: time_decoding(family, side))
    if not figures or out_of_memory:
        return figures | {"problem": "out of memory"}
    peak = {"peak_bytes": torch.cuda.max_memory_allocated()} if on_gpu else {}
    return figures | {"decode_seconds": decoded[0]} | peak


def time_decoding(family: Any, side: int) -> float:
    """Seconds of decoding one picture, the second time."""
    import torch

    from actors.engines.diffusion.request_check import resolve_request
    from actors.engines.diffusion.requests import DiffusionRequest

    request = resolve_request(DiffusionRequest("a photo", seed=1, width=side, height=side), family, side)
    with torch.inference_mode():
        latents = family.pack(family.draw_noise(request, torch.Generator().manual_seed(1)))
        decode: Callable[[], object] = lambda: float(family.decode(request, latents).flatten()[0])  # noqa: E731 - waits for the device
        decode()
        began = time.perf_counter()
        decode()
        return round(time.perf_counter() - began, 4)


if __name__ == "__main__":
    is_tiny = "--tiny" in sys.argv
    sys.stdout.write(json.dumps({name: measure_family(name, tiny=is_tiny) for name in sys.argv[1:] if name != "--tiny"}))
