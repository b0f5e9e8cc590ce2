"""Recorded processes, ports, and the slim RabbitMQ installation."""

import json
import os
import socket
import sys
from pathlib import Path

import psutil
import pytest

from ops.local import daemon
from ops.local.rabbitmq_slim import link_slim_installation, plugin_closure


def test_recorded_process_is_found_and_stopped(tmp_path: Path) -> None:
    record = tmp_path / "one.json"
    daemon.start(["sleep", "60"], record=record, log=tmp_path / "log", env=dict(os.environ))
    process = daemon.find(record)

    assert process is not None
    daemon.stop(process, grace_seconds=5)
    assert daemon.find(record) is None


def test_reused_pid_is_not_recognized(tmp_path: Path) -> None:
    """A stale record must never lead to the end of an unrelated process."""
    record = tmp_path / "stale.json"
    record.write_text(json.dumps({"pid": os.getpid(), "created": psutil.Process().create_time() - 100}))

    assert daemon.find(record) is None


@pytest.mark.parametrize("text", ["", "{", "{}", '{"pid": 999999999, "created": 1}'])
def test_unreadable_record_is_ignored(text: str, tmp_path: Path) -> None:
    (tmp_path / "record").write_text(text)

    assert daemon.find(tmp_path / "record") is None


def test_unresponsive_process_is_killed_after_grace_period(tmp_path: Path) -> None:
    ignore_sigterm = "import signal, time; signal.signal(15, signal.SIG_IGN); open('ready', 'w').close(); time.sleep(60)"
    process = daemon.start(
        [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {ignore_sigterm}"],
        record=tmp_path / "one.json",
        log=tmp_path / "log",
        env=dict(os.environ),
    )
    while not (tmp_path / "ready").exists():
        assert daemon.is_running(process)

    daemon.stop(process, grace_seconds=0.1)

    assert not daemon.is_running(process)


def test_ports_are_distinct_free_and_not_ephemeral() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not daemon.is_port_free(listener.getsockname()[1])
    ports = daemon.free_ports(3)

    assert len(set(ports)) == 3
    assert all(port in daemon.PORT_RANGE and daemon.is_port_free(port) for port in ports)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """An installation: rabbit requires ra, ra requires aten, and nothing requires the management plugin."""
    home = tmp_path / "rabbitmq_server-4.0"
    for name, required in {
        "rabbit-4.0": "kernel,\n  'ra'",
        "ra-2.2": "stdlib,aten",
        "aten-0.5": "kernel",
        "rabbitmq_management-4.0": "rabbit",
    }.items():
        folder = home / "plugins" / name / "ebin"
        folder.mkdir(parents=True)
        application = name.partition("-")[0]
        (folder / f"{application}.app").write_text(f'{{application,{application},[{{vsn,"1"}},{{applications,[{required}]}}]}}.')
    (home / "sbin").mkdir()
    (home / "escript").mkdir()
    script = home / "sbin" / "rabbitmq-server"
    script.touch()
    return script


def test_slim_installation_contains_transitive_dependencies_only(server: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time over an existing folder
        slim = link_slim_installation(server, tmp_path / "home")

    assert slim is not None
    assert {path.name for path in (slim / "plugins").iterdir()} == {"rabbit-4.0", "ra-2.2", "aten-0.5"}
    assert (slim / "sbin" / "rabbitmq-server").exists()


def test_installation_without_plugin_folders_gets_no_slim_view(tmp_path: Path) -> None:
    assert link_slim_installation(tmp_path / "sbin" / "rabbitmq-server", tmp_path / "home") is None
    assert plugin_closure(tmp_path, "rabbit") == []
