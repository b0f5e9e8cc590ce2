"""The simulation agrees with queueing theory, and the number of replicas meets the maximum wait."""

import json
import random
from pathlib import Path

import pytest

from benchmarks.scaling import required_replicas, simulate
from ops.cli import main


def test_constant_service_times_match_pollaczek_khinchine_formula() -> None:
    """M/D/1 at load 0.8: half of 0.8 / 0.2 service times."""
    assert simulate([1.0], rate=0.8, replicas=1, orders=200_000).mean_wait == pytest.approx(2.0, rel=0.1)


def test_exponential_service_times_wait_twice_as_long() -> None:
    rng = random.Random(3)
    times = [rng.expovariate(1.0) for _ in range(20_000)]
    assert simulate(times, rate=0.8, replicas=1, orders=200_000).mean_wait == pytest.approx(4.0, rel=0.2)


def test_required_replicas_is_smallest_that_meets_wait() -> None:
    replicas = required_replicas([10.0], rate=1.0, wait=5.0)
    assert simulate([10.0], rate=1.0, replicas=replicas).p95_wait <= 5.0
    assert simulate([10.0], rate=1.0, replicas=replicas - 1).p95_wait > 5.0


def test_command_reads_measured_service_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "times").write_text("9.5\n10.5\n")
    assert main(["bench", "scaling", "--times", str(tmp_path / "times"), "--rate", "1", "--wait", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replicas"] >= 11
