"""The cost of a call with 1, 2, 4 and 8 rows, relative to one row, for a loaded family; and the families of tiny checkpoints in a process
of their own, `python -m benchmarks.family_costs '{"checkpoints": …}'`, since the benchmarks themselves import no torch.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import alternate, median_ratio
from ops.errors import SetupError

ROWS = (1, 2, 4, 8)
LIMIT_SECONDS = 900.0
"""Of all families together: a call that hangs does not hold the benchmark for ever."""


def measure_in_subprocess(checkpoints: Mapping[str, Path], sides: Sequence[int], rounds: int, threads: int) -> dict[str, Any]:
    """Name → size → rows → relative cost. Raises SetupError when it takes longer than LIMIT_SECONDS."""
    arguments = {"checkpoints": {name: str(path) for name, path in checkpoints.items()}, "sides": sides, "rounds": rounds}
    command = [sys.executable, "-m", "benchmarks.family_costs", json.dumps(arguments | {"threads": threads})]
    try:
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise SetupError(f"The calls of the families took longer than {LIMIT_SECONDS:g} s: is the machine busy?") from None
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def measure_checkpoints(checkpoints: Mapping[str, str], sides: Sequence[int], rounds: int, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    figures: dict[str, Any] = {}
    for name, checkpoint in checkpoints.items():
        family = load_family(Path(checkpoint))
        figures[name] = {f"{side}×{side}": relative_costs(time_rows(family, side, ROWS, rounds)) for side in sides}
    return figures


def load_family(folder: Path) -> Any:
    """A checkpoint in FP32 on the CPU."""
    import diffusers
    import torch

    from actors.engines.diffusion.families.registry import find_family

    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    kind = find_family(folder.name, folder)
    family = kind(kind.load(str(folder), torch.float32))
    family.check()
    return family


def time_rows(family: Any, side: int, rows: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Rows → the seconds of one call in each round. The numbers of rows take turns; the first call of each is not counted."""
    import torch

    from actors.engines.diffusion.saturation_calls import open_call

    seconds: dict[int, list[float]] = {count: [] for count in rows}
    with torch.inference_mode():
        call = open_call(family, side).call
        for count in rows:
            call(count)
        for count in alternate(rows, rounds):
            seconds[count].append(time_call(call, count))
    return seconds


def time_call(call: Callable[[int], object], rows: int) -> float:
    began = time.perf_counter()
    call(rows)
    return time.perf_counter() - began


def relative_costs(seconds: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """Rows → the median, over the rounds, of the duration in those of a call with one row."""
    return {str(rows): median_ratio(durations, seconds[1]) for rows, durations in seconds.items()}


def median_seconds(seconds: Mapping[int, Sequence[float]]) -> dict[str, float]:
    return {str(rows): round(median(durations), 5) for rows, durations in seconds.items()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure_checkpoints(**json.loads(sys.argv[1]))))
