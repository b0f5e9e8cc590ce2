"""Message ids: keyed by the secret of the installation, or by the former scheme that anybody can compute."""

from uuid import UUID

import pytest

from bus import ids
from bus.ids import body_id, derive_key, derived_id, former_id_header, public_body_id, public_id

SECRET = "a" * 32


def test_id_without_secret_is_that_of_earlier_releases() -> None:
    """Computed by the release before: rows and messages of it are recognised by these."""
    assert derived_id("m", "next", "upload") == public_id("m", "next", "upload") == "4a5b837f-3ebf-521c-8bd5-5db3bcc3ef4e"
    assert body_id("q", b"{}") == public_body_id("q", b"{}")
    assert former_id_header("m") == {}


def test_keyed_id_is_uuid_that_depends_on_secret_and_every_part() -> None:
    ids.use_secret(SECRET)
    keyed = {derived_id("m", "next", "upload"), derived_id("m", "next", "image"), derived_id("n", "next", "upload"), body_id("q", b"{}")}
    assert derived_id("m", "next", "upload") == derived_id("m", "next", "upload")
    ids.use_secret("b" * 32)
    keyed |= {derived_id("m", "next", "upload"), public_id("m", "next", "upload")}
    assert len(keyed) == 6
    parsed = UUID(derived_id("m"))
    assert (parsed.version, parsed.variant) == (8, "specified in RFC 4122")
    assert former_id_header("m") == {"atelier-former-id": "m"}


def test_keys_of_two_purposes_differ() -> None:
    assert derive_key(SECRET, "ids") != derive_key(SECRET, "signatures")


@pytest.mark.parametrize("message_id", ["", "a\ud800b", "á" * 300, "x/y"])
def test_any_message_id_gives_an_id(message_id: str) -> None:
    ids.use_secret(SECRET)
    assert UUID(derived_id(message_id, "next"))
    assert UUID(public_id(message_id.encode(errors="replace").decode(), "next"))
