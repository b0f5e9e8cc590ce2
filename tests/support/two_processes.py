"""`make test`: the tests in two processes at once, one for each core of a small machine, which take test files from one list.

With `-k`, the path of a file or a test, or an option that runs no test, there is one process. The output of the second process follows that
of the first; the last line has the outcomes of both.
"""

import json
import signal
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
ONE_PROCESS = {
    *("-k", "--collect-only", "--co", "--help", "-h", "--markers", "--fixtures", "--funcargs", "--fixtures-per-test", "--version", "-V"),
    *("--cache-show", "--continue-on-collection-errors", "--pdb", "--trace"),
}
"""Options that select few tests, run none, run all in each process, or read the terminal."""
LISTED_FILES = 30
INCOMPLETE = 1
"""The exit code when a test was run by no process."""


def selects_few(arguments: list[str]) -> bool:
    """Whether the arguments name words, files or tests, rather than folders or how tests are run, or no tests are run."""
    return any(argument.partition("=")[0] in ONE_PROCESS or (ROOT / argument.partition("::")[0]).is_file() for argument in arguments)


def run(arguments: list[str]) -> int:
    """pytest's exit code; of two processes the first that is not 0."""
    command = [sys.executable, "-m", "pytest", *arguments]
    if selects_few(arguments):
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="atelier-tests-") as folder, tempfile.TemporaryFile() as output:
        # one argument with `=`: pytest takes a folder among its arguments for one of tests, and would look for its settings from there
        command += ["-p", "tests.support.shared_tests", f"--share-tests={folder}", "--override-ini", "console_output_style=classic"]
        # in sessions of their own: a Ctrl-C in the terminal reaches this process alone, which passes it on once
        first = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        second = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=output, stderr=subprocess.STDOUT)
        codes = exit_codes([first, second])
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        records = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
    sys.stdout.write("".join(slowest_files(records)))
    print(closing_line(records, time.monotonic() - begin), flush=True)  # noqa: T201
    return next((code for code in codes if code), 0 if is_complete(records) else INCOMPLETE)


def exit_codes(processes: list["subprocess.Popen[bytes]"]) -> list[int]:
    """After Ctrl-C the processes stop their services; after a second one they are ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            return [process.wait() for process in processes]
        except KeyboardInterrupt:
            for process in processes:
                process.send_signal(number)
    return [process.wait() for process in processes]


def is_complete(records: list[dict[str, Any]]) -> bool:
    """Whether each test that was collected was run by one process."""
    return len(records) == 2 and {record["collected"] for record in records} == {sum(record["ran"] for record in records)}


def closing_line(records: list[dict[str, Any]], seconds: float) -> str:
    """As pytest writes it, for all processes together. Outcomes of the collection, such as deselected tests, count once."""
    total: Counter[str] = Counter()
    for record in records:
        total |= Counter(record["collection"])
    for record in records:
        total += Counter(record["tests"])
    kinds = sorted(total, key=lambda kind: OUTCOMES.index(kind) if kind in OUTCOMES else len(OUTCOMES))
    text = ", ".join(f"{total[kind]} {kind}" for kind in kinds) or "no tests ran"
    missing = "" if is_complete(records) else "; not all tests were run"
    return f" {text} in {seconds:.2f}s{missing} ".center(80, "=")


def slowest_files(records: list[dict[str, Any]]) -> list[str]:
    """With `--slowest-files`, a line for each file of those that took most processor time. A file is run by one process."""
    times = {file: taken for record in records for file, taken in record.get("files", {}).items()}
    slowest = sorted(times.items(), key=lambda item: item[1][1], reverse=True)[:LISTED_FILES]
    return [f"{processor:7.1f} s of a processor {seconds:7.1f} s  {file}\n" for file, (seconds, processor) in slowest]


def main(arguments: list[str]) -> int:
    """As `run`; when this process is to end, or its terminal closes, that is as Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
