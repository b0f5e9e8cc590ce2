"""The memory budget counts what a process takes: measured on a checkpoint whose files are half as large as it is in memory."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.models

TOLERANCE = 0.15
"""Between what is counted and what the process grows by, which includes what the test picture and the allocator keep."""


@pytest.mark.timeout(600)
def test_the_budget_counts_what_the_process_takes() -> None:
    command = [sys.executable, "-m", "tests.support.process_memory"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=580).stdout
    figures = json.loads(output.strip().splitlines()[-1])
    assert figures["counted"] == pytest.approx(2 * figures["files"], rel=0.01)
    assert figures["expected"] == pytest.approx(figures["counted"], rel=0.01)
    assert figures["grown"] == pytest.approx(figures["counted"], rel=TOLERANCE)
