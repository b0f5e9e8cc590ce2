"""The dead-letter benchmark, small: every dead letter is replayed once."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks import dead_letters
from bus.amqp.publisher import Publisher, open_publisher
from bus.persistence.pool import open_pool
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings

LETTERS = 120


@pytest.fixture
async def publisher(bus_settings: BusSettings) -> AsyncIterator[Publisher]:
    async with open_publisher(bus_settings) as publisher:
        yield publisher


async def test_every_dead_letter_is_replayed_once(bus_settings: BusSettings, store_folder: Path, publisher: Publisher) -> None:
    async with open_pool(bus_settings) as pool:
        assert pool is not None
        figures = await dead_letters.run(LETTERS, bus_settings, StoreSettings(store_url=store_folder.as_uri()), pool, publisher)
    assert (figures.letters, figures.groups, figures.lost, figures.duplicated) == (LETTERS, dead_letters.CAUSES, 0, 0)
    assert figures.ingest_per_second > 0 < figures.replay_per_second
