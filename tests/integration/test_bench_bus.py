"""The bench of the bus, small: every side does what it says, and the figures add up."""

import asyncio
import os
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks import bus
from benchmarks.peers import PEERS
from benchmarks.peers.peer_processes import Throughput


def asked(**said: object) -> Namespace:
    return Namespace(**{"sides": list(PEERS), "sizes": [100], "in_flight": [4], "rounds": 1, "seconds": 0.02, "json": True} | said)


def test_every_peer_delivers_messages_and_replies() -> None:
    told = asyncio.run(bus.measure(asked()))
    one_way, asking = told["cells"]["send 100 4"], told["cells"]["ask 100 4"]
    assert set(one_way) == set(PEERS)
    assert set(asking) == {name for name, peer in PEERS.items() if peer.replies}
    assert all(seen["per_second"] > 0 and seen["cpu_us"] > 0 for seen in [*one_way.values(), *asking.values()])
    assert set(told["median_share"]) == {"bus", "bus_kept"}


def speeds(*rates: float) -> list[Throughput]:
    return [Throughput(rate, cpu_microseconds=1e6 / rate) for rate in rates]


def test_share_is_median_of_round_ratios() -> None:
    """So that a slow moment of the machine, which meets both sides, does not count."""
    told = bus.summarize({"send 100 4": {"aio_pika": speeds(100, 10, 100), "bus": speeds(80, 8, 80)}})
    assert told["share"] == told["cpu_share"] == {"send 100 4": {"bus": 0.8}}
    assert told["median_share"]["bus"] == {"send": 0.8}


def test_each_peer_is_compared_with_aio_pika_of_same_guarantees() -> None:
    sides = {"aio_pika": speeds(100), "aio_pika_kept": speeds(50), "bus_kept": speeds(40), "celery": speeds(30)}
    assert bus.summarize({"send 1 1": sides})["share"]["send 1 1"] == {"aio_pika_kept": 0.5, "bus_kept": 0.8, "celery": 0.3}


def test_terminated_bench_leaves_no_process() -> None:
    words = [sys.executable, "-m", "ops.cli", "bench", "bus", "--sides", "aio_pika", "--seconds", "60"]
    with TemporaryDirectory(prefix="atelier-told-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # the database's own user passes through
        with subprocess.Popen(words, env=os.environ | {"TMPDIR": folder}, stderr=subprocess.DEVNULL) as bench:
            while not any("benchmarks.peers" in words for words in running(bench.pid)):
                time.sleep(0.5)
            bench.terminate()
            assert bench.wait(30) == 130
        assert not list(Path(folder).glob("atelier-bench-*"))
        assert not [words for words in running() if folder in words]


def running(of: int | None = None) -> list[str]:
    """The command lines of all processes, or of one's descendants."""
    processes = psutil.Process(of).children(recursive=True) if of else psutil.process_iter()
    said = []
    for process in processes:
        with suppress(psutil.Error):
            said.append(" ".join(process.cmdline()))
    return said
