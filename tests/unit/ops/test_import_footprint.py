"""CPU actors and the command line are light: no torch, and under 120 MB each."""

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
ACTOR = "import sys, bus.worker.worker; from ops.registry import hire; hire(sys.argv[1:])" + REPORT
GATEWAY = "import gateway.app" + REPORT


def measured(code: str, *words: str) -> tuple[int, list[str]]:
    """Megabytes, and what heavy packages were imported."""
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    megabytes, *heavy = done.stdout.split()
    return int(megabytes), heavy


@pytest.mark.parametrize("step", sorted(set(MODULES) - NEEDS_MODELS))
def test_a_cpu_actor_imports_nothing_heavy_and_stays_small(step: str) -> None:
    megabytes, heavy = measured(ACTOR, step)

    assert heavy == []
    assert megabytes < LIMIT_MB


def test_the_gateway_imports_nothing_heavy_and_stays_small() -> None:
    megabytes, heavy = measured(GATEWAY)

    assert heavy == []
    assert megabytes < LIMIT_MB


def test_the_image_actor_itself_imports_no_torch() -> None:
    """Only the process of its engine does."""
    assert measured(ACTOR, "image")[1] == []


def test_help_answers_without_the_bus() -> None:
    code = "import sys, ops.cli; ops.cli.parser(); print(0, *({'faststream', 'aio_pika', 'torch'} & set(sys.modules)))"

    assert measured(code)[1] == []
