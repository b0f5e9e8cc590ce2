"""What every claim store guarantees, in a folder and in a bucket."""

import asyncio
import hashlib

import pytest

from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 400


async def test_claim_written_is_read_back(any_claim_store: ClaimStore) -> None:
    claim = await any_claim_store.write(PICTURE, media_type="image/png", width=4, height=5, tenant=None)
    assert await any_claim_store.read(claim, tenant=None) == PICTURE
    assert (claim.size, claim.width, claim.height, claim.media_type) == (len(PICTURE), 4, 5, "image/png")
    assert claim.sha256 == hashlib.sha256(PICTURE).hexdigest()
    assert claim.uri.endswith(f"claims/{claim.sha256[:2]}/{claim.sha256}.png")


async def test_same_bytes_are_one_object(any_claim_store: ClaimStore) -> None:
    claims = await asyncio.gather(*(any_claim_store.write(PICTURE, media_type="image/png", tenant=None) for _ in range(8)))
    assert len({claim.uri for claim in claims}) == 1


async def test_empty_object_is_stored(any_claim_store: ClaimStore) -> None:
    assert await any_claim_store.read(await any_claim_store.write(b"", media_type="text/plain", tenant=None), tenant=None) == b""


async def test_second_put_overwrites_key(any_claim_store: ClaimStore) -> None:
    first = await any_claim_store.put("generations/gen-7.png", b"old", media_type="image/png", tenant=None)
    later = await any_claim_store.put("generations/gen-7.png", PICTURE, media_type="image/png", tenant=None)
    assert first.uri == later.uri
    assert later.uri.endswith("/generations/gen-7.png")
    assert await any_claim_store.read(later, tenant=None) == PICTURE
    with pytest.raises(PermanentError) as error:
        await any_claim_store.read(first, tenant=None)
    assert error.value.code == "claim-corrupt"


async def test_read_of_absent_object_raises_missing(any_claim_store: ClaimStore) -> None:
    claim = await any_claim_store.write(PICTURE, media_type="image/png", tenant=None)
    missing = claim.model_copy(update={"uri": claim.uri.replace(".png", ".webp")})
    with pytest.raises(PermanentError) as error:
        await any_claim_store.read(missing, tenant=None)
    assert error.value.code == "claim-missing"


async def test_claim_with_wrong_digest_or_size_is_corrupt(any_claim_store: ClaimStore) -> None:
    claim = await any_claim_store.write(PICTURE, media_type="image/png", tenant=None)
    changes: list[dict[str, object]] = [{"sha256": "0" * 64}, {"size": 3}, {"size": 10**9}]
    for change in changes:
        with pytest.raises(PermanentError) as error:
            await any_claim_store.read(claim.model_copy(update=change), tenant=None)
        assert error.value.code == "claim-corrupt", change


UNSAFE_KEYS = ["../x.png", "/x.png", "a/../../x.png", "a//x", ".hidden", "a/./b", "a\\b", "", "a/\0", "a\n", "claims/ab/x.png", "a" * 600]


async def test_unsafe_key_is_rejected(any_claim_store: ClaimStore) -> None:
    for key in UNSAFE_KEYS:
        with pytest.raises(PermanentError) as error:
            await any_claim_store.put(key, b"x", media_type="image/png", tenant=None)
        assert error.value.code == "key-refused", key


async def test_claim_outside_store_is_rejected(any_claim_store: ClaimStore) -> None:
    claim = await any_claim_store.write(PICTURE, media_type="image/png", tenant=None)
    for uri in ["file:///etc/passwd", "s3://somebody-else/x.png", "https://example.com/x.png", "x.png", "", "file://[", "file:///\ud800"]:
        for method in (any_claim_store.read, any_claim_store.url):
            with pytest.raises(PermanentError) as error:
                await method(claim.model_copy(update={"uri": uri}), tenant=None)
            assert error.value.code == "claim-refused", uri


async def test_own_objects_are_fetched_by_url(any_claim_store: ClaimStore) -> None:
    claim = await any_claim_store.put("loras/style.safetensors", PICTURE, media_type="application/octet-stream", tenant=None)
    assert await any_claim_store.fetch(claim.uri, max_bytes=len(PICTURE), tenant=None) == PICTURE


async def test_fetch_beyond_limit_is_too_large(any_claim_store: ClaimStore) -> None:
    claim = await any_claim_store.put("loras/style.safetensors", PICTURE, media_type="application/octet-stream", tenant=None)
    with pytest.raises(PermanentError) as error:
        await any_claim_store.fetch(claim.uri, max_bytes=len(PICTURE) - 1, tenant=None)
    assert error.value.code == "asset-too-large"


async def test_fetch_of_absent_object_raises_missing(any_claim_store: ClaimStore) -> None:
    claim = await any_claim_store.put("loras/style.safetensors", PICTURE, media_type="application/octet-stream", tenant=None)
    with pytest.raises(PermanentError) as error:
        await any_claim_store.fetch(claim.uri + "x", max_bytes=10**6, tenant=None)
    assert error.value.code == "asset-missing"


FOREIGN = [
    "file:///etc/passwd",
    "s3://somebody-else/x",
    "http://example.com/x",
    "https://127.0.0.1/x",
    "https://[::1]/x",
    "ftp://example.com/x",
]
UNREADABLE = [
    *("https://example.com/\ud800", "gs://b/\ud800", "s3://gallery/\ud800", "file:///\ud800", f"https://example.com/{'a' * 9000}"),
    *("x", "", "https://", "https://a b", "s3://", "file:", "file://host/etc/passwd"),
]


async def test_fetch_outside_allowed_sources_is_rejected(any_claim_store: ClaimStore) -> None:
    for uri in FOREIGN + UNREADABLE:
        with pytest.raises(PermanentError) as error:
            await any_claim_store.fetch(uri, max_bytes=10**6, tenant=None)
        assert error.value.code == "asset-refused", uri
