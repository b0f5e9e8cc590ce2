"""`make test`: the tests in two processes at once, one for each core of a small machine; each takes about half of the time.

With a path, `-k` or `-m` among the arguments there is one process. The output of the first process follows that of the second.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRST = ("tests/unit", "tests/conformance", "tests/reports")
"""The folders of the first process, which also has the benchmarks' tests."""
INTERRUPTED = 2
"""pytest's exit code after Ctrl-C."""


def split_tests() -> tuple[list[str], list[str]]:
    """The paths for the two processes; together they are all tests."""
    benchmarks = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/integration").glob("test_bench_*.py"))
    folders = sorted(path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*/__init__.py"))
    others = [folder for folder in folders if folder not in (*FIRST, "tests/support")]
    return [*FIRST, *benchmarks], [*others, *(f"--ignore={path}" for path in benchmarks)]


def is_selection(arguments: list[str]) -> bool:
    """Whether the arguments name tests, rather than say how all are run."""
    return any(argument in ("-k", "-m") or (ROOT / argument.partition("::")[0]).exists() for argument in arguments)


def run(arguments: list[str]) -> int:
    """pytest's exit code; of two processes the first that is not 0."""
    command = [sys.executable, "-m", "pytest"]
    if is_selection(arguments):
        return subprocess.run([*command, *arguments], cwd=ROOT, check=False).returncode
    first, second = split_tests()
    with tempfile.TemporaryFile() as output:
        background = subprocess.Popen([*command, *first, *arguments], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        codes = [INTERRUPTED, INTERRUPTED]
        with contextlib.suppress(KeyboardInterrupt):
            codes[1] = subprocess.run([*command, *second, *arguments], cwd=ROOT, check=False).returncode
        with contextlib.suppress(KeyboardInterrupt):
            codes[0] = background.wait()
        if background.poll() is None:
            background.terminate()
            background.wait()
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
