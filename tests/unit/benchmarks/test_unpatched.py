"""No side of a benchmark but our own has patches of the bus in its AMQP libraries. A process that has them measures nothing of others."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import OWN_MODULES, PEERS

ROOT = Path(__file__).parents[3]
PEER_MODULES = sorted({peer.module for peer in PEERS.values()} - {*OWN_MODULES})
REQUIRE = "from benchmarks.unpatched import require_unpatched_libraries; require_unpatched_libraries()"
SHORT_PATHS = "from bus.amqp.short_paths import use_short_paths; use_short_paths()"
TOLERANT_DECODING = "from bus.amqp.tolerant_decoding import make_decoding_tolerant; make_decoding_tolerant()"
SHORT_PATH_NAMES = (
    "aio_pika.queue.consumer",
    "aiormq.connection.Channel",
    "aiormq.connection.Connection.connect",
    "aiormq.connection.FrameReceiver.get_frame",
    "aiormq.connection.TCPTransportFactory.create",
    "aiormq.connection.TLSTransportFactory.create",
)
TOLERANT_NAMES = ("pamqp.header.ContentHeader.unmarshal", "pamqp.decode.METHODS['shortstr']")


def run(*statements: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", "\n".join(statements)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("patch", "names"), [(SHORT_PATHS, SHORT_PATH_NAMES), (TOLERANT_DECODING, TOLERANT_NAMES)])
def test_every_patch_of_the_bus_is_found(patch: str, names: tuple[str, ...]) -> None:
    process = run(patch, REQUIRE)
    assert process.returncode == 1
    assert "PatchedLibraryError" in process.stderr
    assert [name for name in names if name not in process.stderr] == []


def test_process_that_only_imports_the_bus_has_no_patch() -> None:
    assert run("import bus.amqp.publisher, bus.amqp.broker, bus.worker.worker", REQUIRE).returncode == 0


PATCHED_PEER = f"""
import asyncio, sys, types
from contextlib import asynccontextmanager
from benchmarks.peers import __main__ as peer

@asynccontextmanager
async def opened(config):
    {SHORT_PATHS}
    yield None

sys.modules["benchmarks.peers.aio_pika"] = types.SimpleNamespace(open_worker=opened, open_sender=opened)
asyncio.run(peer.main("aio_pika", ROLE, None))
"""


@pytest.mark.parametrize("role", ["worker", "sender"])
def test_patched_peer_refuses_to_run(role: str) -> None:
    """Its module patches as a connection of the bus does."""
    process = run(f"ROLE = {role!r}", PATCHED_PEER)
    assert "PatchedLibraryError" in process.stderr
    assert "ready" not in process.stdout


@pytest.mark.parametrize("module", PEER_MODULES)
def test_peer_does_not_import_what_patches(module: str) -> None:
    report = run(
        f"import benchmarks.peers.__main__, benchmarks.peers.{module}",
        "import sys",
        "print([name for name in ('bus.amqp.short_paths', 'bus.amqp.tolerant_decoding') if name in sys.modules])",
        REQUIRE,
    )
    assert report.returncode == 0, report.stderr
    assert report.stdout.strip() == "[]"


def test_patched_responder_of_the_gateway_benchmark_refuses_to_run() -> None:
    process = run(
        "import asyncio",
        "from unittest.mock import AsyncMock, MagicMock",
        "from benchmarks import responder",
        SHORT_PATHS,
        "channel = AsyncMock()",
        "connection = MagicMock(channel=AsyncMock(return_value=channel))",
        "opened = MagicMock(__aenter__=AsyncMock(return_value=connection))",
        "responder.aio_pika = MagicMock(connect=AsyncMock(return_value=opened))",
        "responder.declare_command_queues = AsyncMock()",
        "responder.BusSettings = MagicMock()",
        "asyncio.run(asyncio.wait_for(responder.main(), 5))",
    )
    assert "PatchedLibraryError" in process.stderr
    assert "ready" not in process.stderr


def test_clients_of_the_gateway_benchmark_import_nothing_of_the_bus() -> None:
    """Bare aio-pika, FastStream and HTTP run in a process with this module alone."""
    report = run(
        "import benchmarks.request_processes, faststream.rabbit",
        "import sys",
        "print([name for name in sys.modules if name.partition('.')[0] == 'bus'])",
    )
    assert report.stdout.strip() == "[]", report.stderr


@pytest.mark.parametrize("side", ["aio_pika", "faststream_request", "http"])
def test_patched_client_of_the_gateway_benchmark_refuses_to_run(side: str) -> None:
    script = f"""
import asyncio
from contextlib import asynccontextmanager
from benchmarks import request_processes

@asynccontextmanager
async def opened(config):
    {SHORT_PATHS}
    yield []

request_processes.OPENERS = {{{side!r}: opened}}
asyncio.run(request_processes.main({side!r}, None))
"""
    process = run(script)
    assert "PatchedLibraryError" in process.stderr
    assert "ready" not in process.stdout
