"""The picture of a signature: found missing before the image step uses its engine; a missing one is left out where it is not required."""

from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from actors.image import image
from actors.imaging.signature_asset import fetch_signature
from bus.actor import Context
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from contracts.image import Image
from contracts.watermark import Signature
from tests.support.webhook_backend import open_webhook_backend


@pytest.fixture
def missing_uri(tmp_path: Path) -> str:
    """In the store, which the installation's own orders may name."""
    return (tmp_path / "absent.png").as_uri()


async def test_signature_without_a_picture_fetches_nothing(claims: ClaimStore) -> None:
    assert await fetch_signature(None, None, claims, 100) is None
    assert await fetch_signature(Signature(text="Kim"), None, claims, 100) is None


async def test_picture_is_fetched_within_its_limit(claims: ClaimStore, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(b"png")
    signature = Signature(image_uri=(tmp_path / "red.png").as_uri())
    assert await fetch_signature(signature, None, claims, 3) == b"png"
    with pytest.raises(PermanentError) as raised:
        await fetch_signature(signature, None, claims, 2)
    assert raised.value.code == "asset-too-large"


async def test_missing_picture_is_an_error_only_when_required(claims: ClaimStore, missing_uri: str) -> None:
    assert await fetch_signature(Signature(image_uri=missing_uri, required=False), None, claims, 100) is None
    with pytest.raises(PermanentError, match="ORDER_ASSETS_REQUIRED") as raised:
        await fetch_signature(Signature(image_uri=missing_uri), None, claims, 100)
    assert raised.value.code == "signature-missing"


async def test_picture_that_its_server_forbids_counts_as_missing(tmp_path: Path) -> None:
    """A bucket whose objects may not be listed answers 403 for one that does not exist."""
    async with open_webhook_backend() as server:
        server.responses = [403, 403]
        uri = f"{server.url}/red.png"
        async with open_claim_store(
            StoreSettings(store_url=tmp_path.as_uri(), allow_private_addresses=True, allow_plain_http=True)
        ) as claims:
            assert await fetch_signature(Signature(image_uri=uri, required=False), "shop", claims, 100) is None
            with pytest.raises(PermanentError, match="responded with 403") as raised:
                await fetch_signature(Signature(image_uri=uri), "shop", claims, 100)
            assert raised.value.code == "signature-missing"
            with pytest.raises(PermanentError) as raised:
                await fetch_signature(Signature(image_uri="s3://unnamed/red.png", required=False), "shop", claims, 100)
            assert raised.value.code == "asset-refused"


async def test_image_step_finds_a_missing_signature_before_it_uses_the_engine(
    claims: ClaimStore, context: Context, missing_uri: str
) -> None:
    executor = AsyncMock()
    command = Image(prompt="x", signature=Signature(image_uri=missing_uri))
    with pytest.raises(PermanentError) as raised:
        await image(command, context, claims=claims, executor=executor, sources=AsyncMock(), signature_max_bytes=100)
    assert raised.value.code == "signature-missing"
    assert executor.run.await_count == 0
