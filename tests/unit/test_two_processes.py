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
from tests.support.shared_tests import RAN, SLOW_FIXTURES, SLOW_FOLDERS, group_tests, place_of, pytest_terminal_summary
from tests.support.two_processes import INCOMPLETE, ROOT, closing_line, run, selects_few

CONFTEST = """
import builtins, os, pathlib, pytest, sys, time
RAN = pathlib.Path(__file__).with_name("ran")

@pytest.fixture(scope="session", autouse=True)
def service():
    yield
    RAN.with_name(f"stopped-{os.getpid()}").touch()

@pytest.fixture(autouse=True)
def recorded(request):
    with RAN.open("a") as file:
        file.write(f"{request.path.stem}::{request.node.name}\\n")

def pytest_configure(config):
    assert config.inipath == config.rootpath / "pytest.ini"

def wait_for(name):
    end = time.monotonic() + 60
    while name not in RAN.read_text().split():
        assert time.monotonic() < end
        time.sleep(0.01)

def wait_for_file(name):
    end = time.monotonic() + 60
    folder = pathlib.Path(next(argument for argument in sys.argv if argument.startswith("--share-tests=")).partition("=")[2])
    while not (folder / name).exists():
        assert time.monotonic() < end
        time.sleep(0.01)

builtins.wait_for, builtins.wait_for_file, builtins.RAN = wait_for, wait_for_file, RAN
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
        (["--collect-only", "tests/unit"], True),
        (["--continue-on-collection-errors"], True),
        (["--version"], True),
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
    assert f"{2 - first - second} passed" in lines[-1]
    assert len(list(suite.glob("stopped-*"))) == 2


def test_tests_of_a_process_that_ends_are_missed(suite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tests(suite, "a", "import os; wait_for('test_b::test_0'); os._exit(0)", "pass")
    write_tests(suite, "b", "wait_for('test_a::test_0')")

    assert run([]) == INCOMPLETE
    assert "; not all tests were run" in capfd.readouterr().out.splitlines()[-1]


def test_first_failure_ends_both_processes(suite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The other one, which waits for the failure, runs no further test of its file."""
    write_tests(suite, "a", "wait_for('test_b::test_0'); assert False", "pass")
    write_tests(suite, "b", "wait_for('test_a::test_0'); wait_for_file('stopped')", "pass")
    write_tests(suite, "c", "pass")

    assert run(["-x"]) == pytest.ExitCode.TESTS_FAILED
    assert names_that_ran(suite) == ["test_a::test_0", "test_b::test_0"]
    assert re.fullmatch(r"=+ 1 failed, 1 passed in .*s; not all tests were run =+", capfd.readouterr().out.splitlines()[-1])
    assert len(list(suite.glob("stopped-*"))) == 2


def test_failing_end_of_a_session_fixture_is_an_error_of_the_last_test(suite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Failures of tests are reported as well, and the records are complete."""
    with (suite / "conftest.py").open("a") as file:
        file.write('\n@pytest.fixture(scope="session", autouse=True)\ndef broken():\n    yield\n    raise OSError("cannot stop")\n')
    write_tests(suite, "a", "wait_for('test_b::test_0'); assert 1 == 2")
    write_tests(suite, "b", "wait_for('test_a::test_0')")

    assert run([]) == pytest.ExitCode.TESTS_FAILED
    output = capfd.readouterr().out
    assert output.count("E       OSError: cannot stop") == 2
    assert "E       assert 1 == 2" in output
    assert re.fullmatch(r"=+ 1 failed, 1 passed, 2 error in \d+\.\d\ds =+", output.splitlines()[-1])
    assert len(list(suite.glob("stopped-*"))) == 2


def test_error_of_collection_counts_once(suite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tests(suite, "a", "pass")
    (suite / "test_b.py").write_text("import nothing_of_this_name")

    assert run([]) == pytest.ExitCode.INTERRUPTED
    assert not (suite / "ran").exists()
    assert re.fullmatch(r"=+ 1 error in \d+\.\d\ds; not all tests were run =+", capfd.readouterr().out.splitlines()[-1])


def test_slowest_files_are_listed_with_their_seconds(suite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The file that only waits comes after the one that computes."""
    write_tests(suite, "waits", "time.sleep(0.5)", "time.sleep(0.1)")
    write_tests(suite, "computes", "end = time.process_time() + 0.3\n    while time.process_time() < end: pass")
    for file in suite.glob("test_*.py"):
        file.write_text(f"import time\n{file.read_text()}")

    assert run(["--slowest-files"]) == 0
    listed = re.findall(r"^ +(\d+\.\d) s of a processor +(\d+\.\d) s  (.*)$", capfd.readouterr().out, re.MULTILINE)
    assert [file for *_, file in listed] == ["test_computes.py", "test_waits.py"]
    (computed, _), (slept, waited) = [(float(processor), float(seconds)) for processor, seconds, _ in listed]
    assert (computed >= 0.3, slept < 0.3, waited >= 0.6) == (True, True, True)


def test_failed_test_is_run_again_by_its_process(suite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tests(suite, "a", "assert RAN.read_text().count('test_a::test_0') == 2", "pass")

    assert run(["-p", "pytest_rerunfailures", "--reruns", "1"]) == 0
    assert names_that_ran(suite) == ["test_a::test_0", "test_a::test_0", "test_a::test_1"]
    assert re.fullmatch(r"=+ 2 passed, 1 rerun in \d+\.\d\ds =+", capfd.readouterr().out.splitlines()[-1])


def test_record_of_a_process_that_is_ended_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(path: Path, text: str) -> None:
        path.write_bytes(text.encode()[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", write_half)
    reporter = SimpleNamespace(stats={}, _session=SimpleNamespace(testscollected=3))
    config = SimpleNamespace(stash={RAN: 3}, getoption=lambda _: tmp_path)
    with pytest.raises(KeyboardInterrupt):
        pytest_terminal_summary(reporter, cast("pytest.Config", config))
    assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_both_processes_stop_their_services_when_the_run_is_to_end(
    suite: Path, tmp_path_factory: pytest.TempPathFactory, number: signal.Signals
) -> None:
    """The two are in no group of the signal, as with `kill`."""
    temporary = tmp_path_factory.mktemp("temporary")
    write_tests(suite, "a", "wait_for('never')", "pass")
    write_tests(suite, "b", "wait_for('never')")
    code = f"from tests.support import two_processes as t; t.ROOT = t.Path({str(suite)!r}); t.sys.exit(t.main([]))"
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, env=environment, process_group=0)

    async def both_wait() -> bool:
        return (suite / "ran").exists() and len(names_that_ran(suite)) == 2

    try:
        await wait_until(both_wait, 60)
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert len(list(suite.glob("stopped-*"))) == 2
    assert b"; not all tests were run" in output.splitlines()[-1]
    assert list(temporary.iterdir()) == []


def fake_test(file: str, *fixtures: str) -> pytest.Item:
    return cast("pytest.Item", SimpleNamespace(nodeid=f"{file}::test", fixturenames=fixtures))


def test_files_that_may_take_long_come_first_and_those_of_one_slow_fixture_together() -> None:
    files = ["tests/unit/bus/test_b.py", "tests/integration/test_z.py", "tests/unit/actors/engines/test_e.py", "tests/chaos/test_chaos.py"]
    users = [fake_test("tests/integration/test_a.py", "any_claim_store"), fake_test("tests/reports/test_r.py", "x", "ceph_endpoint")]
    tests = [*map(fake_test, files), *users]
    groups = group_tests(tests)
    assert list(groups) == ["tests/chaos/test_chaos.py", "ceph", *files[1:3], files[0]]
    assert groups["ceph"] == users
    assert sorted(map(id, tests)) == sorted(id(test) for group in groups.values() for test in group)


def test_each_slow_fixture_is_one_function() -> None:
    """Another fixture of the same name would add its files to the group."""
    sources = [file.read_text() for file in (ROOT / "tests").rglob("*.py")]
    assert {name: sum(source.count(f"def {name}(") for source in sources) for name in SLOW_FIXTURES} == dict.fromkeys(SLOW_FIXTURES, 1)


def test_slow_folders_exist_and_order_is_theirs() -> None:
    assert all((ROOT / "tests" / folder).is_dir() for folder in SLOW_FOLDERS)
    assert [place_of(f"tests/{folder}/test_x.py") for folder in SLOW_FOLDERS] == list(range(len(SLOW_FOLDERS)))
    assert place_of("tests/unit/bus/test_x.py") == len(SLOW_FOLDERS)


def test_closing_line_adds_the_outcomes_of_both_processes() -> None:
    """Both leave out the same tests, which count once."""
    outcomes: list[dict[str, Any]] = [{"passed": 3, "rerun": 1}, {"passed": 4, "failed": 1, "skipped": 2}]
    collection = {"deselected": 5, "skipped": 1}
    records = [{"collected": 10, "ran": ran, "tests": tests, "collection": collection} for ran, tests in zip((4, 6), outcomes, strict=True)]
    assert closing_line(records, 1.5).strip("= ") == "1 failed, 7 passed, 3 skipped, 5 deselected, 1 rerun in 1.50s"
    assert closing_line(records[:1], 1.5).strip("= ") == "3 passed, 1 skipped, 5 deselected, 1 rerun in 1.50s; not all tests were run"
