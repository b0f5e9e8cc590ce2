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
    *("python", "models", "image-model", "seeing-model", "device", "shaping", "disk"),
    *("rabbitmq", "postgres", "store", "webhooks", "links", "queues"),
}


def test_json_document_has_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.doctor(Namespace(json=True, steps=[], services=False))

    document = json.loads(capsys.readouterr().out)
    assert document["ok"] == (status == 0)
    assert {check["name"] for check in document["checks"]} == NAMES
    assert all(set(check) == {"name", "ok", "detail", "cure", "warning"} for check in document["checks"])
    assert all(bool(check["cure"]) == (not check["ok"] or check["warning"]) for check in document["checks"])


def test_text_output_lists_checks_with_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    warning = Check("model-server-text", True, "serves b, and not a[/x]", "set VLLM_MODEL", warning=True)
    doctor.print_checks(
        [Check("store", False, "/data [x] cannot be written", "let this user write"), Check("disk", True, "9 GiB free"), warning]
    )

    output = capsys.readouterr().out
    assert "! model-server-text: serves b, and not a[/x]" in output
    assert "cure: set VLLM_MODEL" in output
    assert "✗ store: /data" in output
    assert "cure: let this user write" in output
    assert "✓ disk: 9 GiB free" in output


def test_unknown_step_is_named() -> None:
    with pytest.raises(SetupError, match="No actor serves watermrak"):
        doctor.doctor(Namespace(json=True, steps=["watermrak"], services=False))


def test_services_are_checked_without_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """As in a container, which has no models extra."""
    doctor.doctor(Namespace(json=True, steps=[], services=True))

    names = {check["name"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert names == {"rabbitmq", "postgres", "store", "webhooks", "links", "queues"}


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


@pytest.mark.parametrize(
    ("variables", "cure"),
    [
        ({"STORE_URL": "s3://media"}, "STORE_PUBLIC_URL"),
        ({"AWS_STORAGE_BUCKET_NAME": "media", "UPLOAD_URL": "s3://pictures"}, "UPLOAD_PUBLIC_URL"),
        ({"STORE_URL": "s3://media", "STORE_PUBLIC_URL": "https://cdn.example"}, ""),
        ({"AWS_STORAGE_BUCKET_NAME": "media"}, ""),
        ({"UPLOAD_URL": "s3://pictures", "UPLOAD_PUBLIC_URL": "https://cdn.example"}, ""),
        ({}, ""),
    ],
)
async def test_links_that_expire_are_a_warning(variables: dict[str, str], cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    check = await doctor_services.check_links(LocalSettings())

    assert check.ok
    assert check.warning == bool(cure)
    assert cure in check.cure


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
