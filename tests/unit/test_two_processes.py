"""`make test` runs every test file in one of its two processes, and in one process what its arguments select."""

from pathlib import Path

import pytest

from tests.support import two_processes
from tests.support.two_processes import ROOT, is_selection, run, split_tests


def covered_by(arguments: list[str]) -> set[Path]:
    """The test files that pytest would read."""
    ignored = {ROOT / argument.partition("=")[2] for argument in arguments if argument.startswith("--ignore=")}
    paths = [ROOT / argument for argument in arguments if not argument.startswith("--")]
    files = {file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))}
    return files - ignored


def test_every_test_file_is_in_one_of_the_two_processes() -> None:
    first, second = map(covered_by, split_tests())
    assert first | second == set((ROOT / "tests").rglob("test_*.py"))
    assert first & second == set()
    assert min(len(first), len(second)) > 50


@pytest.mark.parametrize(
    ("arguments", "selects"),
    [
        (["--reruns", "1"], False),
        ([], False),
        (["tests/unit"], True),
        (["tests/unit/test_promises.py::test_every_system_has_its_promises"], True),
        (["-k", "word"], True),
    ],
)
def test_arguments_that_select_tests_are_recognized(arguments: list[str], selects: bool) -> None:
    assert is_selection(arguments) is selects


@pytest.mark.parametrize(("first", "second", "expected"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_failure_of_either_process_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], first: int, second: int, expected: int
) -> None:
    """Two files that pytest runs for real; the output of both is printed."""
    files = []
    for name, code in (("first", first), ("second", second)):
        (tmp_path / f"test_{name}.py").write_text(f"def test_{name}():\n    assert {code} == 0\n")
        files.append([str(tmp_path / f"test_{name}.py"), "--rootdir", str(tmp_path), "-c", "/dev/null", "-p", "no:cacheprovider"])
    monkeypatch.setattr(two_processes, "split_tests", lambda: tuple(files))

    assert run([]) == expected
    output = capfd.readouterr().out
    assert output.index("test_second.py") < output.index("test_first.py")
    assert output.count(" failed in ") == first + second
