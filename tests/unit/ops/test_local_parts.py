"""Records, ports and the slim view: what the embedded parts are built from."""

import json
import os
import socket
import sys
from pathlib import Path

import psutil
import pytest

from ops.local import ports, process
from ops.local.slim import closure, slim_tree


def test_a_recorded_process_is_found_and_stopped(tmp_path: Path) -> None:
    record = tmp_path / "one.json"
    process.start(["sleep", "60"], record=record, log=tmp_path / "log", env=dict(os.environ))
    found = process.find(record)

    assert found is not None
    process.stop(found, grace_seconds=5)
    assert process.find(record) is None


def test_a_pid_that_belongs_to_another_process_by_now_is_not_it(tmp_path: Path) -> None:
    """A stale record must never lead to the end of a stranger."""
    record = tmp_path / "stale.json"
    record.write_text(json.dumps({"pid": os.getpid(), "created": psutil.Process().create_time() - 100}))

    assert process.find(record) is None


@pytest.mark.parametrize("text", ["", "{", "{}", '{"pid": 999999999, "created": 1}'])
def test_an_unreadable_record_is_nobody(text: str, tmp_path: Path) -> None:
    (tmp_path / "record").write_text(text)

    assert process.find(tmp_path / "record") is None


def test_a_process_that_does_not_listen_is_killed_after_the_grace(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); open('ready', 'w').close(); time.sleep(60)"
    started = process.start(
        [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {deaf}"],
        record=tmp_path / "one.json",
        log=tmp_path / "log",
        env=dict(os.environ),
    )
    while not (tmp_path / "ready").exists():
        assert process.running(started)

    process.stop(started, grace_seconds=0.1)

    assert not process.running(started)


def test_ports_are_different_free_and_outside_the_range_of_outgoing_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not ports.is_free(taken.getsockname()[1])
    found = ports.free(3)

    assert len(set(found)) == 3
    assert all(port in ports.BELOW_EPHEMERAL and ports.is_free(port) for port in found)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """An installation: rabbit needs ra, ra needs aten; the management plugin is there and needed by nobody."""
    home = tmp_path / "rabbitmq_server-4.0"
    for name, needs in {
        "rabbit-4.0": "kernel,\n  'ra'",
        "ra-2.2": "stdlib,aten",
        "aten-0.5": "kernel",
        "rabbitmq_management-4.0": "rabbit",
    }.items():
        folder = home / "plugins" / name / "ebin"
        folder.mkdir(parents=True)
        application = name.partition("-")[0]
        (folder / f"{application}.app").write_text(f'{{application,{application},[{{vsn,"1"}},{{applications,[{needs}]}}]}}.')
    (home / "sbin").mkdir()
    (home / "escript").mkdir()
    script = home / "sbin" / "rabbitmq-server"
    script.touch()
    return script


def test_the_slim_view_has_what_the_server_needs_at_any_depth_and_no_more(server: Path, tmp_path: Path) -> None:
    for _ in range(2):  # over its own leftovers too
        made = slim_tree(server, tmp_path / "home")

    assert made is not None
    assert {place.name for place in (made / "plugins").iterdir()} == {"rabbit-4.0", "ra-2.2", "aten-0.5"}
    assert (made / "sbin" / "rabbitmq-server").exists()


def test_an_installation_of_another_shape_is_used_as_it_is(tmp_path: Path) -> None:
    assert slim_tree(tmp_path / "sbin" / "rabbitmq-server", tmp_path / "home") is None
    assert closure(tmp_path, "rabbit") == []
