"""pytest plugin: the processes of one run share its tests. Each collects all of them and takes one group after another until none is left,
so that all end together, however long a test takes.

A group is a test file, or the files that use the same slow fixture. A process takes it by creating a file of its name in the folder of
`--share-tests`; at its end it writes there how many tests it collected and ran, and their outcomes.
"""

import gc
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

SLOW_FOLDERS = ("chaos", "integration", "conformance", "e2e", "gpu", "reports", "unit/actors/engines", "unit/ops", "unit/actors")
"""Folders whose tests come first, in this order: at the end only short ones are left to take."""
SLOW_FIXTURES = ("running_vllm", "tiny_families", "store")
"""Fixtures of several files that only one process shall set up: a vLLM server, a checkpoint of each family, a server of Ceph."""
TAKEN = pytest.StashKey[list[int]]()
"""The sizes of the groups that this process has taken."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share-tests", type=Path, required=True, metavar="FOLDER", help="where the processes of this run take their tests")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TAKEN] = []


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
    for tests in take_groups(session):
        # after the last test of a group, its fixtures are torn down, and those of the session wait for the next group
        for test, following in zip(tests, [*tests[1:], session], strict=True):
            session.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
    return True


def take_groups(session: pytest.Session) -> Iterator[list[pytest.Item]]:
    for name, tests in group_tests(session.items).items():
        try:
            (session.config.getoption("share_tests") / name.replace("/", ":")).touch(exist_ok=False)
        except FileExistsError:
            continue
        session.config.stash[TAKEN].append(len(tests))
        yield tests


def group_tests(tests: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
    """The tests by the name of their group, in the order in which groups are taken."""
    files: dict[str, list[pytest.Item]] = {}
    for test in tests:
        files.setdefault(test.nodeid.partition("::")[0], []).append(test)
    groups: dict[str, list[pytest.Item]] = {}
    for file in sorted(files, key=lambda file: (place_of(file), file)):
        groups.setdefault(slow_fixture(files[file]) or file, []).extend(files[file])
    return groups


def place_of(file: str) -> int:
    return next((place for place, folder in enumerate(SLOW_FOLDERS) if file.startswith(f"tests/{folder}/")), len(SLOW_FOLDERS))


def slow_fixture(tests: list[pytest.Item]) -> str | None:
    used = {name for test in tests for name in getattr(test, "fixturenames", ())}
    return next((name for name in SLOW_FIXTURES if name in used), None)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write the outcomes as pytest's closing line counts them."""
    kinds = {kind: reports for kind, reports in terminalreporter.stats.items() if kind}
    outcomes = {kind: sum(getattr(report, "count_towards_summary", True) for report in reports) for kind, reports in kinds.items()}
    collected = terminalreporter._session.testscollected
    record = {"collected": collected, "taken": sum(config.stash[TAKEN]), "outcomes": outcomes}
    (config.getoption("share_tests") / f"{os.getpid()}.json").write_text(json.dumps(record))
