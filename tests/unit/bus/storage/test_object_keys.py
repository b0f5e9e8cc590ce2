"""Keys of objects in a claim store."""

import hashlib

import pytest

from bus.errors import PermanentError
from bus.storage.object_keys import claim_key, safe_key, sha256_base64, sha256_hex

DIGEST = sha256_hex(b"picture")


@pytest.mark.parametrize(
    ("media_type", "extension"),
    [("image/png", "png"), ("image/jpeg", "jpg"), ("application/json", "json"), ("application/x-other", "bin"), ("", "bin")],
)
def test_claim_key_has_digest_and_extension(media_type: str, extension: str) -> None:
    assert claim_key(DIGEST, media_type) == f"claims/{DIGEST[:2]}/{DIGEST}.{extension}"


@pytest.mark.parametrize("key", ["a", "gen-1.png", "tenant/2026/gen_1~x+y=z.png", "a" * 512])
def test_safe_key_is_returned(key: str) -> None:
    assert safe_key(key) == key


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.hidden", ".hidden", "claims/ab/x.png", "a b", "a\\b", "ä", "a\n", "a" * 513],
)
def test_unsafe_key_is_refused(key: str) -> None:
    with pytest.raises(PermanentError) as refused:
        safe_key(key)
    assert refused.value.code == "key-refused"


def test_digest_is_converted_to_base64() -> None:
    assert bytes.fromhex(DIGEST) == hashlib.sha256(b"picture").digest()
    assert sha256_base64(sha256_hex(b"")) == "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
