"""The secret of the local services: created once, readable by its owner alone."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from ops.errors import SetupError
from ops.local.secret_file import SECRET_FILE, local_secret, read_or_create_secret
from ops.local.stack import ServiceUrls
from ops.settings import LocalSettings
from ops.up import describe_services


def test_secret_is_created_once_and_private(tmp_path: Path) -> None:
    """Processes that start at the same time get the same one."""
    with ThreadPoolExecutor(8) as threads:
        secrets = set(threads.map(read_or_create_secret, [tmp_path / "new" / SECRET_FILE] * 8))
    (secret,) = secrets
    assert len(secret) == 64
    assert stat.S_IMODE((tmp_path / "new" / SECRET_FILE).stat().st_mode) == 0o600
    assert [file.name for file in (tmp_path / "new").iterdir()] == [SECRET_FILE]


def test_given_secret_takes_precedence_and_given_broker_needs_one(tmp_path: Path) -> None:
    private = LocalSettings(local_folder=tmp_path)
    shared = private.model_copy(update={"amqp_url": SecretStr("amqp://elsewhere")})
    given = private.model_copy(update={"secret": SecretStr("g" * 32)})
    assert (local_secret(shared), local_secret(given)) == (None, "g" * 32)
    assert not (tmp_path / SECRET_FILE).exists()
    assert local_secret(private) == (tmp_path / SECRET_FILE).read_text()


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 64])
def test_unusable_file_is_refused_with_cure(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SECRET_FILE).write_bytes(content)
    with pytest.raises(SetupError):
        read_or_create_secret(tmp_path / SECRET_FILE)


def test_secret_reaches_children_and_is_not_printed(tmp_path: Path) -> None:
    urls = ServiceUrls("amqp://a", "postgresql://d", "file:///s", secrets={"secret": "s" * 64, "sign_messages": "off"})
    assert urls.environment["ATELIER_SECRET"] == "s" * 64
    assert "s" * 64 not in describe_services(urls, LocalSettings(local_folder=tmp_path)) + repr(urls)
