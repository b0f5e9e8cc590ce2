"""A claim store in a folder, and the reply of an image step whose picture is in it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from tests.support.picture_files import SIZE, png


@pytest.fixture
async def claims(tmp_path: Path) -> AsyncIterator[ClaimStore]:
    async with open_claim_store(StoreSettings(store_url=tmp_path.as_uri())) as store:
        yield store


@pytest.fixture
async def drawn(claims: ClaimStore) -> dict[str, Any]:
    """The result of the image step: one picture, with the seed 7."""
    width, height = SIZE
    claim = await claims.write(png(), tenant=None, media_type="image/png", width=width, height=height, generated=True)
    metadata = {"seed": 7, "steps": 1, "guidance_scale": 7.5}
    return {"images": [claim.model_dump(mode="json")], "seeds": [7], "metadata": metadata}
