"""Addresses in messages and logs have no secrets; a key is shown as it is."""

from bus.net.addresses import redact_uri, split_address


def test_redacted_address_has_no_credentials() -> None:
    assert redact_uri("https://user:word@host.example/a?X-Amz-Signature=abc#d") == "https://host.example/a"
    assert redact_uri("HTTPS://user:word@host.example/a?X-Amz-Signature=abc") == "https://host.example/a"
    assert redact_uri("https://host.example:port/?X-Amz-Signature=abc") == "https://host.example:port/"
    assert redact_uri("https://[?X-Amz-Signature=abc") == "an invalid address"
    assert redact_uri("s3://user:word@bucket/a/b?X-Amz-Credential=a/b&X-Amz-Signature=abc") == "s3://bucket/a/b"


def test_key_has_no_query() -> None:
    for address in ("s3://bucket/style#1?a/w", "gs://bucket/style#1/a?b", "file:///style#1/a?b"):
        assert redact_uri(address) == address
        assert split_address(address).geturl() == address
        assert (split_address(address).query, split_address(address).fragment) == ("", "")
    assert split_address("https://host/a?b#c").query == "b"
