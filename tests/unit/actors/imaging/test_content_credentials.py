"""Content Credentials: errors of the certificate, the key and the picture. tests/conformance/test_credentials.py verifies signed files."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from actors.imaging.content_credentials import load_credential_signer
from actors.settings import CredentialSettings
from bus.errors import PermanentError
from tests.support.certificates import write_signing_chain


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    return dict(write_signing_chain(tmp_path))


def test_no_signer_without_certificate() -> None:
    assert load_credential_signer(CredentialSettings()) is None


@pytest.mark.parametrize("missing", ["chain", "key"])
def test_certificate_without_key_raises(files: dict[str, Any], missing: str) -> None:
    del files[missing]
    with pytest.raises(ValueError, match="both"):
        load_credential_signer(CredentialSettings(**files))


def test_missing_file_is_named(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="elsewhere"):
        load_credential_signer(CredentialSettings(**files | {"key": tmp_path / "elsewhere"}))


def test_key_of_another_certificate_is_rejected_at_start(files: dict[str, Any]) -> None:
    other_key = ec.generate_private_key(ec.SECP256R1())
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files["key"].write_bytes(other_key.private_bytes(*encoding))
    with pytest.raises(ValueError, match="cannot sign"):
        load_credential_signer(CredentialSettings(**files))


def test_key_of_another_algorithm_is_rejected_at_start(files: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot sign with ed25519"):
        load_credential_signer(CredentialSettings(**files, algorithm="ed25519"))


def test_non_image_cannot_be_signed(files: dict[str, Any]) -> None:
    sign_credentials = load_credential_signer(CredentialSettings(**files))
    assert sign_credentials
    with pytest.raises(PermanentError) as raised:
        sign_credentials(b"no picture", "image/png", "gen-7.png")
    assert raised.value.code == "credentials-refused"
