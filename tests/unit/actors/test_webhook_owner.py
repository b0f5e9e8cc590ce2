"""To whom a generation belongs: the webhook actor against a real HTTP server, without a database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from actors.settings import WebhookSettings
from actors.webhook import webhook
from actors.webhooks.delivery_lock import MemoryDeliveryLock
from actors.webhooks.webhook_client import open_webhook_client
from bus.actor import Handler
from bus.errors import PermanentError
from contracts.webhook import Webhook
from tests.support.actor_context import make_context
from tests.support.webhook_backend import WebhookBackend

COMPLETE = Webhook(kind="complete", generation_id=7, result_url="https://cdn.example/7.png")
FAILED = Webhook(kind="failed", generation_id=7)


def progress(percent: int) -> Webhook:
    fields = {"current_step": percent, "total_steps": 100, "progress_percent": percent}
    return Webhook.model_validate({"kind": "progress", "generation_id": 7, "progress": fields})


@asynccontextmanager
async def open_handler(url: str, **more: Any) -> AsyncIterator[Handler]:
    async with open_webhook_client(WebhookSettings(BACKEND_API_URL=url, **more)) as client:
        yield partial(webhook, client=client, lock=MemoryDeliveryLock())


@pytest.fixture
async def send_webhook(backend: WebhookBackend) -> AsyncIterator[Handler]:
    async with open_handler(backend.url, webhook_timeout_seconds=5) as handler:
        yield handler


@pytest.mark.parametrize("owner", ["shop", None])
async def test_generation_of_another_tenant_is_refused(send_webhook: Handler, backend: WebhookBackend, owner: str | None) -> None:
    """Whoever called first owns the generation; the installation (no tenant) counts as an owner."""
    await send_webhook(progress(25), make_context("m1", tenant=owner))
    for command in (COMPLETE, FAILED):
        with pytest.raises(PermanentError) as error:
            await send_webhook(command, make_context("m2", tenant="office"))
        assert error.value.code == "generation-foreign"
    assert not (await send_webhook(progress(50), make_context("m3", tenant="office"))).delivered
    assert backend.paths == ["progress"]
    assert (await send_webhook(COMPLETE, make_context("m4", tenant=owner))).delivered


async def test_installation_may_call_for_a_generation_that_a_tenant_used(send_webhook: Handler, backend: WebhookBackend) -> None:
    """A tenant that guesses the ids of the backend's own orders cannot stop them; afterwards it owns them no longer."""
    await send_webhook(progress(25), make_context("m1", tenant="office"))
    assert (await send_webhook(COMPLETE, make_context("m2"))).delivered
    with pytest.raises(PermanentError, match="generation 7 belongs to") as error:
        await send_webhook(COMPLETE, make_context("m3", tenant="office"))
    assert error.value.code == "generation-foreign"
    assert backend.paths == ["progress", "complete"]


async def test_configured_backend_and_its_name_in_a_message_are_one_target(backend: WebhookBackend) -> None:
    """So that a generation has one owner and one order of calls."""
    allowed = {"webhook_allowed_hosts": "127.0.0.1", "allow_private_addresses": True, "allow_plain_http": True}
    async with open_handler(f"{backend.url}/", **allowed) as handler:
        await handler(COMPLETE, make_context("m1", tenant="shop"))
        with pytest.raises(PermanentError) as error:
            await handler(COMPLETE.model_copy(update={"base_url": backend.url}), make_context("m2", tenant="office"))
    assert error.value.code == "generation-foreign"
    assert backend.paths == ["complete"]
