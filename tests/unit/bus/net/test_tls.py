"""The authorities that a client trusts are read once, and again when a file of them is renewed or another is named."""

import os
from pathlib import Path

import certifi
import pytest

from bus.net.tls import create_ssl_context

CERTIFICATE_END = "-----END CERTIFICATE-----\n"


@pytest.fixture
def authorities() -> list[str]:
    """Two certificates of public authorities."""
    return [f"{text}{CERTIFICATE_END}" for text in certifi.contents().split(CERTIFICATE_END)[:2]]


def test_authorities_are_read_once() -> None:
    assert create_ssl_context(None) is create_ssl_context(None)


@pytest.mark.parametrize("setting", ["TLS_CA_FILE", "SSL_CERT_FILE"])
def test_renewed_file_is_read_again(setting: str, authorities: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "authority.pem"
    file.write_text(authorities[0])
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    ca_file = file if setting == "TLS_CA_FILE" else None
    assert len(create_ssl_context(ca_file).get_ca_certs()) == 1
    file.write_text("".join(authorities))
    os.utime(file, ns=(1, 1))  # two writes may have the same time
    assert len(create_ssl_context(ca_file).get_ca_certs()) == 2


def test_another_file_is_another_context(authorities: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, text in enumerate(authorities):
        (tmp_path / f"{number}.pem").write_text(text)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "0.pem"))
    own, both = create_ssl_context(None), create_ssl_context(tmp_path / "1.pem")
    assert (len(own.get_ca_certs()), len(both.get_ca_certs())) == (1, 2)
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    assert len(create_ssl_context(None).get_ca_certs()) > 2
