"""CPU actors and the command line import no torch and nothing else that they do not need, and take little memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from ops.registry import MODULES, NEEDS_MODELS

ROOT = Path(__file__).parents[3]
ACTOR_LIMIT_MB = 69
"""After the imports, with a margin of 9 % over what the largest actor takes, for other versions of Python and of the libraries."""
GATEWAY_LIMIT_MB = 73
"""After the imports. A gateway that serves has a limit of its own, in tests/integration/test_concurrent_clients.py."""
HEAVY = ("torch", "transformers", "diffusers", "vllm", "numpy")
NEEDLESS = ("rich", "pygments", "click", "uvicorn", "trio", "fastapi", "opentelemetry.sdk", "aioboto3", "botocore", "psutil", "yaml")
"""What a library takes where it finds it, and what only some settings or other processes need."""
SERVERS = ("http.server", "wsgiref.simple_server")
"""What FastStream and the client of Prometheus would import for functions that no process of ours calls."""
HTTP_STEPS = frozenset({"image_generation", "moderate", "embed", "response.run", "text", "webhook"})
"""They call HTTP servers. Any other imports httpx when it first fetches an address of a message."""
PICTURE_STEPS = frozenset({"image_generation", "job_variants", "moderate", "overlay", "response.run", "text", "variants", "watermark"})

REPORT = """
modules = [*sys.modules]
import psutil
print(psutil.Process().memory_info().rss // 1_000_000, *modules)
"""
ACTOR = "import sys; from ops.cli import load_worker; load_worker(sys.argv[1:])" + REPORT
GATEWAY = "import sys, ops.commands.run_gateway" + REPORT
BUS = """
import bus.observability.metrics, bus.worker.worker, sys
from prometheus_client import exposition
exposition.Request("http://localhost/")
"""
PARSER = "import sys, ops.cli; ops.cli.parser()" + REPORT


def footprint_of(code: str, *arguments: str) -> tuple[int, set[str]]:
    """Memory in megabytes, and the modules that were imported."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    megabytes, *modules = result.stdout.split()
    return int(megabytes), set(modules)


@pytest.mark.parametrize("step", sorted(set(MODULES) - NEEDS_MODELS))
def test_cpu_actor_imports_only_what_it_needs_and_takes_little_memory(step: str) -> None:
    needless = {
        *HEAVY,
        *NEEDLESS,
        *SERVERS,
        *(() if step in HTTP_STEPS else ("httpx",)),
        *(() if step in PICTURE_STEPS else ("PIL",)),
    }
    megabytes, modules = footprint_of(ACTOR, step)

    assert modules & needless == set()
    assert megabytes < ACTOR_LIMIT_MB


def test_gateway_imports_no_heavy_package_and_takes_little_memory() -> None:
    megabytes, modules = footprint_of(GATEWAY)

    assert modules & {*HEAVY, *SERVERS, "unittest.mock", "asyncpg"} == set()
    assert megabytes < GATEWAY_LIMIT_MB


def test_program_that_imports_the_bus_has_all_of_the_libraries() -> None:
    """Only processes of our own commands have empty modules: see `load_worker` and `run_gateway`."""
    assert footprint_of(BUS + REPORT)[1] >= {*SERVERS, "urllib.request"}


def test_image_actor_imports_no_torch() -> None:
    """Only the process of its engine imports torch."""
    assert footprint_of(ACTOR, "image")[1] & {*HEAVY} == set()


def test_parser_imports_neither_bus_nor_torch() -> None:
    assert footprint_of(PARSER)[1] & {"faststream", "aio_pika", "torch"} == set()
