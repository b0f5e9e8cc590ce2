"""Content Credentials: what cannot be signed with, and what cannot be signed, is named. The signed file is tested with the store's S3."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from actors.pictures.credentials import open_credentials
from actors.settings import CredentialSettings
from bus.errors import PermanentError
from tests.certificates import write_chain


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    return dict(write_chain(tmp_path))


def test_nothing_is_signed_where_no_certificate_is_configured() -> None:
    assert open_credentials(CredentialSettings()) is None


@pytest.mark.parametrize("missing", ["chain", "key"])
def test_one_file_without_the_other_is_a_mistake(files: dict[str, Any], missing: str) -> None:
    del files[missing]
    with pytest.raises(ValueError, match="both"):
        open_credentials(CredentialSettings(**files))


def test_a_file_that_is_not_there_is_named(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="elsewhere"):
        open_credentials(CredentialSettings(**files | {"key": tmp_path / "elsewhere"}))


def test_files_that_do_not_belong_together_are_refused_at_the_start(files: dict[str, Any]) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files["key"].write_bytes(stranger.private_bytes(*forms))
    with pytest.raises(ValueError, match="cannot sign"):
        open_credentials(CredentialSettings(**files))


def test_a_key_of_another_kind_is_refused_at_the_start(files: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot sign with ed25519"):
        open_credentials(CredentialSettings(**files, algorithm="ed25519"))


def test_what_is_no_picture_cannot_be_signed(files: dict[str, Any]) -> None:
    certify = open_credentials(CredentialSettings(**files))
    assert certify
    with pytest.raises(PermanentError) as caught:
        certify(b"no picture", "image/png", "gen-7.png")
    assert caught.value.code == "credentials-refused"
