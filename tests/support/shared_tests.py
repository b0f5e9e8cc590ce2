"""pytest plugin: the processes of one run share its tests. Each collects all of them and takes one group after another until none is left,
so that all end together, however long a test takes.

A group is a test file, or the files that set up the same slow thing. A process takes it by creating a file of its name in the folder of
`--share-tests`. When one stops early (`-x`, or `--maxfail`, for which each counts its own failures), the other ends its running test and
stops. At its end each writes there how many tests it collected and ran, their outcomes, and with `--slowest-files` what each file took.
"""

import gc
import json
import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

SLOW_FOLDERS = ("chaos", "integration", "conformance", "e2e", "gpu", "reports", "unit/actors/engines", "unit/ops", "unit/actors")
"""Folders whose tests come first, in this order: at the end only short ones are left to take."""
SLOW_FIXTURES = {
    "running_vllm": "vllm",
    "tiny_families": "families",
    "any_claim_store": "ceph",
    "any_s3": "ceph",
    "ceph_endpoint": "ceph",
}
"""Fixtures of several files, and what one process alone shall set up for them: a vLLM server, all families' checkpoints, a Ceph server."""
RAN = pytest.StashKey[int]()
"""The tests that this process has run."""
FILE_TIMES = pytest.StashKey[dict[str, list[float]]]()
"""By file, the seconds of its tests, and those of processor time in this process and its children that have ended."""
STOPPED = "stopped"
"""The file by which one process stops the other."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share-tests", type=Path, required=True, metavar="FOLDER", help="where the processes of this run take their tests")
    parser.addoption("--slowest-files", action="store_true", help="list the files whose tests took most processor time")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RAN] = 0
    config.stash[FILE_TIMES] = {}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without garbage collections, each of which visits a million objects; what is made here lives until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run what this process takes; otherwise as pytest's own loop. None leaves errors of the collection to that."""
    if session.testsfailed or session.config.option.collectonly:
        return None
    stopped = session.config.getoption("share_tests") / STOPPED
    test = None
    for test, following in take_tests(session):
        began = os.times()
        session.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
        add_times(session.config.stash[FILE_TIMES].setdefault(file_of(test), [0.0, 0.0]), began, os.times())
        session.config.stash[RAN] += 1
        if session.shouldfail or session.shouldstop:
            stopped.touch()
        if stopped.exists():
            break
    if test:
        session.config.hook.pytest_runtest_protocol(item=test, nextitem=None)
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
    return True


def add_times(times: list[float], began: os.times_result, ended: os.times_result) -> None:
    times[0] += ended.elapsed - began.elapsed
    times[1] += sum(ended[:4]) - sum(began[:4])


def take_tests(session: pytest.Session) -> Iterator[tuple[pytest.Item, pytest.Item | pytest.Session]]:
    """Each test and the one that follows. After the last of a group, its fixtures are torn down; those of the session wait for the next."""
    for name, tests in group_tests(session.items).items():
        try:
            (session.config.getoption("share_tests") / name.replace("/", ":")).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield from zip(tests, [*tests[1:], session], strict=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """After the last test, whose `nextitem` is None here alone: the fixtures of the session are torn down within the time limit of that
    test, and an error is reported as one of its teardown.
    """
    if nextitem is not None:
        return None
    call = pytest.CallInfo.from_call(
        lambda: item.session._setupstate.teardown_exact(None), "teardown", reraise=(KeyboardInterrupt, pytest.exit.Exception)
    )
    if call.excinfo:
        item.ihook.pytest_runtest_logreport(report=pytest.TestReport.from_item_and_call(item, call))
    return True


def group_tests(tests: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
    """The tests by the name of their group, in the order in which groups are taken."""
    files: dict[str, list[pytest.Item]] = {}
    for test in tests:
        files.setdefault(file_of(test), []).append(test)
    groups: dict[str, list[pytest.Item]] = {}
    for file in sorted(files, key=lambda file: (place_of(file), file)):
        groups.setdefault(slow_thing(files[file]) or file, []).extend(files[file])
    return groups


def file_of(test: pytest.Item) -> str:
    return test.nodeid.partition("::")[0]


def place_of(file: str) -> int:
    return next((place for place, folder in enumerate(SLOW_FOLDERS) if file.startswith(f"tests/{folder}/")), len(SLOW_FOLDERS))


def slow_thing(tests: list[pytest.Item]) -> str | None:
    used = {name for test in tests for name in getattr(test, "fixturenames", ())}
    return next((thing for name, thing in SLOW_FIXTURES.items() if name in used), None)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write the outcomes as pytest's closing line counts them; apart those of the collection, which both processes have alike."""
    outcomes: dict[str, Counter[str]] = {"tests": Counter(), "collection": Counter()}
    for kind, reports in terminalreporter.stats.items():
        for report in reports if kind else ():
            alike = isinstance(report, pytest.CollectReport | pytest.Item)
            outcomes["collection" if alike else "tests"][kind] += getattr(report, "count_towards_summary", True)
    record = {"collected": terminalreporter._session.testscollected, "ran": config.stash[RAN], **outcomes}
    if config.getoption("slowest_files"):
        record["files"] = config.stash.get(FILE_TIMES, {})
    file = config.getoption("share_tests") / f"{os.getpid()}.part"
    file.write_text(json.dumps(record))
    file.rename(file.with_suffix(".json"))  # whole, or not at all when a second Ctrl-C ends this process
