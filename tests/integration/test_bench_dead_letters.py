"""The bench of dead letters, small: it ends, and its figures add up."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.database import open_database
from bus.outbox import Outbox, open_outbox
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from ops.bench import dead_letters

LETTERS = 120


@pytest.fixture
async def outbox(bus_settings: BusSettings) -> AsyncIterator[Outbox]:
    async with open_outbox(bus_settings) as outbox:
        yield outbox


async def test_every_letter_comes_back_once(bus_settings: BusSettings, store_folder: Path, outbox: Outbox) -> None:
    async with open_database(bus_settings) as pool:
        assert pool is not None
        figures = await dead_letters.run(LETTERS, bus_settings, StoreSettings(store_url=store_folder.as_uri()), pool, outbox)
    assert (figures.letters, figures.groups, figures.lost, figures.duplicated) == (LETTERS, dead_letters.CAUSES, 0, 0)
    assert figures.ingest_per_second > 0 < figures.replay_per_second
