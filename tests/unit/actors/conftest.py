"""What an actor is given: a context, and the real parts that need nothing outside this process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.actor import Context
from bus.claims import ClaimStore
from bus.store_settings import StoreSettings
from bus.stores import open_claims
from contracts.event import Progress
from tests.listening_backend import Backend, open_backend


async def unheard(progress: Progress) -> None:
    """Nobody listens to the progress."""


def context_of(message_id: str = "message-1", job_id: str = "generation-7") -> Context:
    return Context(job_id=job_id, message_id=message_id, attempt=1, tenant=None, deadline=None, report=unheard)


@pytest.fixture
def context() -> Context:
    return context_of()


@pytest.fixture
async def claims(tmp_path: Path) -> AsyncIterator[ClaimStore]:
    async with open_claims(StoreSettings(store_url=tmp_path.as_uri())) as store:
        yield store


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with open_backend() as listening:
        yield listening
