"""The doctor reports problems with their remedies, as text or as one JSON document."""

import json
import socket
from argparse import Namespace
from pathlib import Path

import pytest
from pydantic import SecretStr

from ops.commands import doctor, doctor_host, doctor_services
from ops.commands.doctor_host import Check
from ops.errors import SetupError
from ops.settings import LocalSettings

NAMES = {
    *("python", "models", "image-model", "seeing-model", "device", "disk"),
    *("rabbitmq", "postgres", "store", "webhooks", "queues"),
}


def test_json_document_has_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.doctor(Namespace(json=True, steps=[]))

    document = json.loads(capsys.readouterr().out)
    assert document["ok"] == (status == 0)
    assert {check["name"] for check in document["checks"]} == NAMES
    assert all(set(check) == {"name", "ok", "detail", "cure"} for check in document["checks"])
    assert all(bool(check["cure"]) != check["ok"] for check in document["checks"])


def test_text_output_lists_checks_with_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.print_checks([Check("store", False, "/data [x] cannot be written", "let this user write"), Check("disk", True, "9 GiB free")])

    output = capsys.readouterr().out
    assert "✗ store: /data" in output
    assert "cure: let this user write" in output
    assert "✓ disk: 9 GiB free" in output


def test_unknown_step_is_named() -> None:
    with pytest.raises(SetupError, match="No actor serves watermrak"):
        doctor.doctor(Namespace(json=True, steps=["watermrak"]))


async def test_missing_rabbitmq_server_is_reported_with_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    check = await doctor_services.check_broker(LocalSettings(server_path=str(tmp_path), may_install=False, local_folder=tmp_path))

    assert not check.ok
    assert "AMQP_URL" in check.cure


async def test_unreachable_broker_is_reported_without_its_password() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        check = await doctor_services.check_broker(LocalSettings(amqp_url=SecretStr(f"amqp://user:secret-word@127.0.0.1:{port}/")))

    assert not check.ok
    assert f"127.0.0.1:{port} does not answer" in check.detail
    assert "secret-word" not in repr(check)


def test_missing_driver_is_reported_when_cuda_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor_host.check_device(LocalSettings()).ok
    monkeypatch.setenv("IMAGE_DEVICE", "cuda:0")
    assert "IMAGE_DEVICE" in doctor_host.check_device(LocalSettings()).cure


def test_model_folder_must_contain_model_and_hub_id_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_MODEL", str(tmp_path))
    assert "atelier models tiny" in doctor_host.check_image_model(LocalSettings()).cure
    (tmp_path / "model_index.json").touch()
    assert doctor_host.check_image_model(LocalSettings()).ok
    monkeypatch.setenv("IMAGE_MODEL", "someone/some-model")
    assert doctor_host.check_image_model(LocalSettings()).ok
