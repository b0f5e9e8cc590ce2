"""Fixtures for the handlers of actors: a context, a claim store in a folder, and a backend for webhooks."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.actor import Context
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from tests.support.actor_context import make_context
from tests.support.webhook_backend import WebhookBackend, open_webhook_backend


@pytest.fixture
def context() -> Context:
    return make_context()


@pytest.fixture
async def claims(tmp_path: Path) -> AsyncIterator[ClaimStore]:
    async with open_claim_store(StoreSettings(store_url=tmp_path.as_uri())) as store:
        yield store


@pytest.fixture
async def backend() -> AsyncIterator[WebhookBackend]:
    async with open_webhook_backend() as webhook_backend:
        yield webhook_backend
