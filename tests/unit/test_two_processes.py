"""`make test` runs each test once in one of two processes, and in one process what its arguments select; its last line has all outcomes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support import two_processes
from tests.support.broker_client import wait_until
from tests.support.shared_tests import SLOW_FIXTURES, SLOW_FOLDERS, group_tests, place_of
from tests.support.two_processes import INCOMPLETE, ROOT, closing_line, run, selects_few

CONFTEST = """
import builtins, os, pathlib, pytest, time
RAN = pathlib.Path(__file__).with_name("ran")

@pytest.fixture(scope="session", autouse=True)
def service():
    yield
    RAN.with_name(f"stopped-{os.getpid()}").touch()

@pytest.fixture(autouse=True)
def recorded(request):
    with RAN.open("a") as file:
        file.write(f"{request.path.stem}::{request.node.name}\\n")

def wait_for(name):
    end = time.monotonic() + 60
    while name not in RAN.read_text().split():
        assert time.monotonic() < end
        time.sleep(0.01)

builtins.wait_for = wait_for
"""
"""Each test writes its name to the file `ran`; each process leaves a file when its fixture of the session is stopped."""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `run` takes for the project's."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    monkeypatch.setattr(two_processes, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return tmp_path


def write_tests(suite: Path, name: str, *bodies: str) -> None:
    (suite / f"test_{name}.py").write_text("\n".join(f"def test_{number}():\n    {body}" for number, body in enumerate(bodies)))


def names_that_ran(suite: Path) -> list[str]:
    return sorted((suite / "ran").read_text().split())


@pytest.mark.parametrize(
    ("arguments", "few"),
    [
        (["--reruns", "1"], False),
        ([], False),
        (["tests/unit"], False),
        (["tests/unit", "-m", "not models"], False),
        (["tests/unit/test_promises.py"], True),
        (["tests/unit/test_promises.py::test_every_system_has_its_promises"], True),
        (["-k", "word"], True),
    ],
)
def test_arguments_that_select_few_tests_are_recognized(arguments: list[str], few: bool) -> None:
    assert selects_few(arguments) is few


def test_every_test_runs_once_and_a_free_process_takes_the_next_file(suite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One process waits in its first test for the last file; the other runs all others meanwhile."""
    write_tests(suite, "a", "wait_for('test_e::test_1')", "pass")
    for name in "bcde":
        write_tests(suite, name, "pass", "pass")

    assert run(["--rootdir", str(suite)]) == 0
    assert names_that_ran(suite) == [f"test_{name}::test_{number}" for name in "abcde" for number in (0, 1)]
    output = capfd.readouterr().out
    assert sorted(int(count) for count in re.findall(r"= (\d+) passed in ", output)) == [2, 8, 10]
    assert re.fullmatch(r"=+ 10 passed in \d+\.\d\ds =+", output.splitlines()[-1])


@pytest.mark.parametrize(("first", "second", "expected"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_failure_of_either_process_is_the_exit_code(
    suite: Path, capfd: pytest.CaptureFixture[str], first: int, second: int, expected: int
) -> None:
    """Two files, each run by one process, as the one waits for the other; the output of both is printed, and the last line counts both."""
    write_tests(suite, "first", f"wait_for('test_second::test_0'); assert {first} == 0")
    write_tests(suite, "second", f"wait_for('test_first::test_0'); assert {second} == 0")

    assert run([]) == expected
    lines = capfd.readouterr().out.splitlines()
    assert [line[: len("test_first.py")] for line in lines if line.startswith("test_") and line.endswith((" .", " F"))] in (
        ["test_first.py", "test_second.p"],
        ["test_second.p", "test_first.py"],
    )
    assert (f"{first + second} failed" in lines[-1]) is bool(expected)
    assert (f"{2 - first - second} passed" in lines[-1]) is True
    assert len(list(suite.glob("stopped-*"))) == 2


def test_tests_of_a_process_that_ends_are_missed(suite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tests(suite, "a", "import os; wait_for('test_b::test_0'); os._exit(0)", "pass")
    write_tests(suite, "b", "wait_for('test_a::test_0')")

    assert run([]) == INCOMPLETE
    assert "; not all tests were run" in capfd.readouterr().out.splitlines()[-1]


async def test_after_ctrl_c_both_processes_stop_their_services(suite: Path) -> None:
    write_tests(suite, "a", "wait_for('never')")
    write_tests(suite, "b", "wait_for('never')")
    code = f"from tests.support import two_processes as t; t.ROOT = t.Path({str(suite)!r}); t.sys.exit(t.run([]))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, process_group=0)

    async def both_wait() -> bool:
        return (suite / "ran").exists() and len(names_that_ran(suite)) == 2

    try:
        await wait_until(both_wait, 60)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert len(list(suite.glob("stopped-*"))) == 2
    assert b"; not all tests were run" not in output.splitlines()[-1], "every test was taken"


def fake_test(file: str, *fixtures: str) -> pytest.Item:
    return cast("pytest.Item", SimpleNamespace(nodeid=f"{file}::test", fixturenames=fixtures))


def test_files_that_may_take_long_come_first_and_those_of_one_slow_fixture_together() -> None:
    files = ["tests/unit/bus/test_b.py", "tests/integration/test_z.py", "tests/unit/actors/engines/test_e.py", "tests/chaos/test_chaos.py"]
    slow = SLOW_FIXTURES[0]
    tests = [*map(fake_test, files), fake_test("tests/integration/test_a.py", slow), fake_test("tests/reports/test_r.py", "x", slow)]
    groups = group_tests(tests)
    assert list(groups) == ["tests/chaos/test_chaos.py", slow, *files[1:3], files[0]]
    assert groups[slow] == tests[-2:]
    assert sorted(map(id, tests)) == sorted(id(test) for group in groups.values() for test in group)


def test_slow_folders_exist_and_order_is_theirs() -> None:
    assert all((ROOT / "tests" / folder).is_dir() for folder in SLOW_FOLDERS)
    assert [place_of(f"tests/{folder}/test_x.py") for folder in SLOW_FOLDERS] == list(range(len(SLOW_FOLDERS)))
    assert place_of("tests/unit/bus/test_x.py") == len(SLOW_FOLDERS)


def test_closing_line_adds_the_outcomes_of_both_processes() -> None:
    """Both leave out the same tests, which count once."""
    outcomes: list[dict[str, Any]] = [{"passed": 3, "deselected": 5, "rerun": 1}, {"passed": 4, "failed": 1, "deselected": 5, "skipped": 2}]
    records = [{"collected": 10, "taken": 4, "outcomes": outcomes[0]}, {"collected": 10, "taken": 6, "outcomes": outcomes[1]}]
    assert closing_line(records, 1.5).strip("= ") == "1 failed, 7 passed, 2 skipped, 5 deselected, 1 rerun in 1.50s"
    assert closing_line(records[:1], 1.5).strip("= ") == "3 passed, 5 deselected, 1 rerun in 1.50s; not all tests were run"
