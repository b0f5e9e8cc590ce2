"""Certificates made for a test: an authority, a server certificate for this machine, and one that may sign Content Credentials."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey
AUTHORITY = "Test authority"


@dataclass(frozen=True)
class Certificates:
    """PEM files: the authority to trust, the server's certificate, and its key."""

    authority: Path
    server: Path
    key: Path

    @property
    def ssl_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.server, self.key)
        return context


def make_certificates(folder: Path) -> Certificates:
    """A server certificate for `localhost` and 127.0.0.1."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    server = certificate_builder("localhost", server_key, authority_key).add_extension(names, critical=False)
    files = Certificates(folder / "authority.pem", folder / "server.pem", folder / "key.pem")
    files.authority.write_bytes(sign(authority_builder(authority_key), authority_key))
    files.server.write_bytes(sign(server, authority_key))
    files.key.write_bytes(key_bytes(server_key))
    return files


def write_signing_chain(folder: Path) -> dict[str, Path]:
    """PEM files for Content Credentials: `chain` (certificate and authority) and `key`."""
    authority_key, own_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    leaf = certificate_builder("Test studio", own_key, authority_key)
    leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    leaf = leaf.add_extension(key_usage(signs_certificates=False), critical=True)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    files = {"chain": folder / "chain.pem", "key": folder / "key.pem"}
    files["chain"].write_bytes(sign(leaf, authority_key) + sign(authority_builder(authority_key), authority_key))
    files["key"].write_bytes(key_bytes(own_key))
    return files


def authority_builder(key: PrivateKey) -> x509.CertificateBuilder:
    builder = certificate_builder(AUTHORITY, key, key)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(key_usage(signs_certificates=True), critical=True)


def certificate_builder(name: str, key: PrivateKey, issuer_key: PrivateKey) -> x509.CertificateBuilder:
    """A certificate issued by the authority, valid from an hour ago for a day."""
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(serial_number=x509.random_serial_number(), public_key=key.public_key())
    builder = builder.subject_name(x509_name(name)).issuer_name(x509_name(AUTHORITY))
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)


def x509_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Atelier"), x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def sign(builder: x509.CertificateBuilder, key: PrivateKey) -> bytes:
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def key_bytes(key: PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
