"""Actors that need a database refuse to open without one; adapters and the dead-letter ingest read settings when they are built."""

import pytest

from actors import conversations, dead_letters, ledger, variants
from actors.adapters import image_generation, job_variants
from bus.actor import Actor, InvalidMessage, Resources
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore

DATABASE_ACTORS = (*conversations.ACTORS, *dead_letters.ACTORS, *ledger.ACTORS, variants.ACTOR)


@pytest.mark.parametrize("actor", DATABASE_ACTORS, ids=lambda actor: actor.step)
async def test_actor_without_database_names_the_setting(actor: Actor, claims: ClaimStore) -> None:
    with pytest.raises(PermanentError, match="DATABASE_URL") as raised:
        async with actor.open(Resources(claims)):
            pass
    assert raised.value.code == "database-missing"


def test_ingest_and_listener_read_settings_when_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEAD_LETTERS_FOREIGN_QUEUES", "first.dead,second.dead")
    monkeypatch.setenv("JOB_STATE_LISTENER_SWEEP_SECONDS", "7")
    assert dead_letters.build_ingest().foreign_queues == ("first.dead", "second.dead")
    assert job_variants.build_adapter().sweep_seconds == 7


def test_image_generation_adapter_reads_backend_address_when_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the configured backend may have a private address."""
    order = b'{"generation_id": 500, "prompt_tags": ["harbour"], "webhook_url": "http://10.0.0.7"}'
    with pytest.raises(InvalidMessage, match="BACKEND_API_URL"):
        image_generation.build_adapter().translate(order)
    monkeypatch.setenv("BACKEND_API_URL", "http://10.0.0.7")
    assert image_generation.build_adapter().translate(order).step == "image"
