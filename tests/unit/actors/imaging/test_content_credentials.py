"""Content Credentials: what cannot be signed with, and what cannot be signed, is named. The signed file is tested with the store's S3."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from actors.imaging.content_credentials import load_credential_signer
from actors.settings import CredentialSettings
from bus.errors import PermanentError
from tests.support.signing_certificates import write_signing_chain


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    return dict(write_signing_chain(tmp_path))


def test_nothing_is_signed_where_no_certificate_is_configured() -> None:
    assert load_credential_signer(CredentialSettings()) is None


@pytest.mark.parametrize("missing", ["chain", "key"])
def test_certificate_without_key_raises(files: dict[str, Any], missing: str) -> None:
    del files[missing]
    with pytest.raises(ValueError, match="both"):
        load_credential_signer(CredentialSettings(**files))


def test_a_file_that_is_not_there_is_named(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="elsewhere"):
        load_credential_signer(CredentialSettings(**files | {"key": tmp_path / "elsewhere"}))


def test_files_that_do_not_belong_together_are_refused_at_the_start(files: dict[str, Any]) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files["key"].write_bytes(stranger.private_bytes(*forms))
    with pytest.raises(ValueError, match="cannot sign"):
        load_credential_signer(CredentialSettings(**files))


def test_a_key_of_another_kind_is_refused_at_the_start(files: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot sign with ed25519"):
        load_credential_signer(CredentialSettings(**files, algorithm="ed25519"))


def test_non_image_cannot_be_signed(files: dict[str, Any]) -> None:
    certify = load_credential_signer(CredentialSettings(**files))
    assert certify
    with pytest.raises(PermanentError) as caught:
        certify(b"no picture", "image/png", "gen-7.png")
    assert caught.value.code == "credentials-refused"
