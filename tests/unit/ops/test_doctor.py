"""The doctor names what is missing and the cure, in words or as one JSON document."""

import json
import socket
from argparse import Namespace
from pathlib import Path

import pytest
from pydantic import SecretStr

from ops import doctor
from ops.settings import LocalSettings


def test_the_json_document_has_the_agreed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.doctor(Namespace(json=True))

    said = json.loads(capsys.readouterr().out)
    assert said["ok"] == (status == 0)
    assert {check["name"] for check in said["checks"]} == {"python", "rabbitmq", "postgres", "store", "models", "disk"}
    assert all(set(check) == {"name", "ok", "detail", "cure"} for check in said["checks"])


def test_a_missing_server_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    check = doctor.broker(LocalSettings(server_path=str(tmp_path), may_install=False))

    assert not check.ok
    assert "AMQP_URL" in check.cure


def test_a_broker_that_does_not_answer_is_a_finding_and_its_password_stays_out_of_it() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        check = doctor.broker(LocalSettings(amqp_url=SecretStr(f"amqp://user:hush@127.0.0.1:{port}/")))

    assert not check.ok
    assert f"127.0.0.1:{port} does not answer" in check.detail
    assert "hush" not in repr(check)


def test_a_server_that_listens_is_fine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = SecretStr(f"postgresql://user@127.0.0.1:{server.getsockname()[1]}/db")

        assert doctor.database(LocalSettings(database_url=url)).ok
