"""CPU actors and the command line import no torch, and take less than 120 MB each."""

import subprocess
import sys
from pathlib import Path

import pytest

from ops.registry import MODULES, NEEDS_MODELS

ROOT = Path(__file__).parents[3]
LIMIT_MB = 120
HEAVY = ("torch", "transformers", "diffusers", "vllm", "numpy")

REPORT = f"""
import sys, psutil
print(psutil.Process().memory_info().rss // 1_000_000, *sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY})))
"""
ACTOR = "import sys, bus.worker.worker; from ops.registry import load_actors; load_actors(sys.argv[1:])" + REPORT
GATEWAY = "import gateway.app" + REPORT


def footprint_of(code: str, *arguments: str) -> tuple[int, list[str]]:
    """Memory in megabytes, and the heavy packages that were imported."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    megabytes, *heavy = result.stdout.split()
    return int(megabytes), heavy


@pytest.mark.parametrize("step", sorted(set(MODULES) - NEEDS_MODELS))
def test_cpu_actor_imports_no_heavy_package_and_takes_little_memory(step: str) -> None:
    megabytes, heavy = footprint_of(ACTOR, step)

    assert heavy == []
    assert megabytes < LIMIT_MB


def test_gateway_imports_no_heavy_package_and_takes_little_memory() -> None:
    megabytes, heavy = footprint_of(GATEWAY)

    assert heavy == []
    assert megabytes < LIMIT_MB


def test_image_actor_imports_no_torch() -> None:
    """Only the process of its engine imports torch."""
    assert footprint_of(ACTOR, "image")[1] == []


def test_parser_imports_neither_bus_nor_torch() -> None:
    code = "import sys, ops.cli; ops.cli.parser(); print(0, *({'faststream', 'aio_pika', 'torch'} & set(sys.modules)))"

    assert footprint_of(code)[1] == []
