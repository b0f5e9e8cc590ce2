"""`make test`: the tests in two processes at once, one for each core of a small machine, which take test files from one list.

With `-k`, or the path of a file or a test among the arguments, there is one process. The output of the second process follows that of the
first; the last line has the outcomes of both.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUTCOMES = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings", "error")
"""Their order in a closing line of pytest; others, such as `rerun`, follow."""
INCOMPLETE = 1
"""The exit code when a test was run by no process."""


def selects_few(arguments: list[str]) -> bool:
    """Whether the arguments name words, files or tests, rather than folders or how tests are run."""
    return any(argument == "-k" or (ROOT / argument.partition("::")[0]).is_file() for argument in arguments)


def run(arguments: list[str]) -> int:
    """pytest's exit code; of two processes the first that is not 0."""
    command = [sys.executable, "-m", "pytest", *arguments]
    if selects_few(arguments):
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="atelier-tests-") as folder, tempfile.TemporaryFile() as output:
        command += ["-p", "tests.support.shared_tests", "--share-tests", folder, "--override-ini", "console_output_style=classic"]
        first = subprocess.Popen(command, cwd=ROOT)
        second = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        codes = exit_codes([first, second])
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        records = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
    print(closing_line(records, time.monotonic() - begin), flush=True)  # noqa: T201
    return next((code for code in codes if code), 0 if is_complete(records) else INCOMPLETE)


def exit_codes(processes: list["subprocess.Popen[bytes]"]) -> list[int]:
    """After Ctrl-C, which the processes get as well, they stop their services; after a second one they are ended."""
    for end in (subprocess.Popen.poll, subprocess.Popen.terminate):
        try:
            return [process.wait() for process in processes]
        except KeyboardInterrupt:
            for process in processes:
                end(process)
    return [process.wait() for process in processes]


def is_complete(records: list[dict[str, Any]]) -> bool:
    """Whether each test that was collected was taken by one process."""
    return len(records) == 2 and {record["collected"] for record in records} == {sum(record["taken"] for record in records)}


def closing_line(records: list[dict[str, Any]], seconds: float) -> str:
    """As pytest writes it, for all processes together. Both have left out the same tests."""
    total = sum((Counter(record["outcomes"]) for record in records), Counter())
    total["deselected"] = max((record["outcomes"].get("deselected", 0) for record in records), default=0)
    kinds = sorted(+total, key=lambda kind: OUTCOMES.index(kind) if kind in OUTCOMES else len(OUTCOMES))
    text = ", ".join(f"{total[kind]} {kind}" for kind in kinds) or "no tests ran"
    missing = "" if is_complete(records) else "; not all tests were run"
    return f" {text} in {seconds:.2f}s{missing} ".center(80, "=")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
