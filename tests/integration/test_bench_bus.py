"""The bus benchmark, small: every peer delivers messages and replies, and the figures add up."""

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
import pytest

from benchmarks import bus
from benchmarks.peers import PEERS
from benchmarks.peers.peer_processes import Throughput


@pytest.mark.timeout(300)  # twenty processes start one after another
def test_every_peer_delivers_messages_and_replies() -> None:
    arguments = Namespace(sides=list(PEERS), sizes=[100], in_flight=[4], rounds=1, seconds=0.02, json=True)
    figures = asyncio.run(bus.measure(arguments))
    one_way, with_reply = figures["cells"]["send 100 4"], figures["cells"]["ask 100 4"]
    assert set(one_way) == set(PEERS)
    assert set(with_reply) == {name for name, peer in PEERS.items() if peer.replies}
    assert all(cell["per_second"] > 0 and cell["cpu_us"] > 0 for cell in [*one_way.values(), *with_reply.values()])
    assert set(figures["median_share"]) == set(bus.BASELINE_OF)


def speeds(*rates: float) -> list[Throughput]:
    return [Throughput(rate, cpu_microseconds=1e6 / rate) for rate in rates]


def test_share_is_median_of_round_ratios() -> None:
    """A slow moment of the machine affects both sides, and so not their ratio."""
    figures = bus.summarize({"send 100 4": {"aio_pika": speeds(100, 10, 100), "bus": speeds(80, 8, 80)}})
    assert figures["share"] == figures["cpu_share"] == {"send 100 4": {"bus": 0.8}}
    assert figures["median_share"]["bus"] == {"send": 0.8}


def test_each_peer_is_compared_with_aio_pika_of_same_guarantees() -> None:
    sides = {"aio_pika": speeds(100), "aio_pika_kept": speeds(50), "bus_kept": speeds(40), "celery": speeds(30)}
    assert bus.summarize({"send 1 1": sides})["share"]["send 1 1"] == {"aio_pika_kept": 0.5, "bus_kept": 0.8, "celery": 0.3}


def test_goals_are_medians_of_round_ratios_by_messages_in_flight() -> None:
    cells = {
        "send 1000 16": {"aio_pika": speeds(100, 10, 100), "bus": speeds(95, 9, 96), "bus_kept": speeds(76, 9, 77)},
        "send 64000 16": {"aio_pika": speeds(100), "bus": speeds(75), "bus_kept": speeds(60)},
        "ask 1000 16": {"aio_pika": speeds(100), "bus": speeds(110)},
    }
    goals = bus.summarize(cells)
    assert goals["one_way_share_of_aio_pika"] == {"16": 0.85}
    assert goals["request_reply_share_of_aio_pika"] == {"16": 1.1}
    assert goals["kept_share_of_unkept"] == {"16": 0.801}
    assert goals["kept_share_of_aio_pika"] == {"16": 0.685}
    assert goals["request_reply_kept_share_of_unkept"] == {}


def test_rows_behind_a_peer_name_peer_and_share() -> None:
    cells = {
        "send 1000 1": {"bus": speeds(80), "dramatiq": speeds(100), "taskiq": speeds(50)},
        "send 1000 16": {"bus": speeds(120), "dramatiq": speeds(60), "taskiq": speeds(100)},
        "ask 1000 1": {"bus": speeds(30), "celery": speeds(10)},
    }
    figures = bus.summarize(cells)
    assert figures["rows_behind_a_peer"] == [{"row": "send 1000 1", "peer": "dramatiq", "share": 0.8}]
    assert figures["over"] == {"celery": {"ask": 3.0}, "dramatiq": {"send": 1.4}, "taskiq": {"send": 1.4}}


def test_terminated_bench_leaves_no_process() -> None:
    command = [sys.executable, "-m", "ops.cli", "bench", "bus", "--sides", "aio_pika", "--seconds", "60"]
    with TemporaryDirectory(prefix="atelier-bench-test-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # the database's own user must be able to enter
        with subprocess.Popen(command, env=os.environ | {"TMPDIR": folder}, stderr=subprocess.DEVNULL) as bench:
            while not (peers := [line for line in command_lines(bench.pid) if "benchmarks.peers" in line]):
                time.sleep(0.5)
            assert not any("://" in line for line in peers), "an argument has the address and password of a service"
            bench.terminate()
            assert bench.wait(30) == 130
        assert not list(Path(folder).glob("atelier-bench-*"))
        assert not [line for line in command_lines() if folder in line]


def command_lines(parent: int | None = None) -> list[str]:
    """The command lines of all processes, or of one's descendants."""
    processes = psutil.Process(parent).children(recursive=True) if parent else psutil.process_iter()
    lines = []
    for process in processes:
        with suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    return lines
