"""The simulation agrees with what queueing theory knows, and asks for as many replicas as a wait needs."""

import json
import random
from pathlib import Path

import pytest

from benchmarks.scaling import required_replicas, simulate
from ops.cli import main


def test_one_server_with_constant_times_waits_as_pollaczek_and_khinchine_say() -> None:
    """M/D/1 at load 0.8: half of 0.8 / 0.2 service times."""
    assert simulate([1.0], rate=0.8, replicas=1, orders=200_000).mean_wait == pytest.approx(2.0, rel=0.1)


def test_one_server_with_random_times_waits_twice_as_long() -> None:
    chance = random.Random(3)
    times = [chance.expovariate(1.0) for _ in range(20_000)]
    assert simulate(times, rate=0.8, replicas=1, orders=200_000).mean_wait == pytest.approx(4.0, rel=0.2)


def test_fewer_replicas_would_keep_the_orders_waiting_longer() -> None:
    enough = required_replicas([10.0], rate=1.0, wait=5.0)
    assert simulate([10.0], rate=1.0, replicas=enough).p95_wait <= 5.0
    assert simulate([10.0], rate=1.0, replicas=enough - 1).p95_wait > 5.0


def test_the_command_reads_measured_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "times").write_text("9.5\n10.5\n")
    assert main(["bench", "scaling", "--times", str(tmp_path / "times"), "--rate", "1", "--wait", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replicas"] >= 11
