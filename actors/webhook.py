"""Webhook: notifies the backend of the progress, completion or failure of an image generation.

Reads a command of the kind `progress`, `complete` or `failed`; returns whether the backend accepted the call. The table
`atelier.webhook_calls` keeps the state of each generation's calls and its tenant, so that they arrive in order, no refund is sent twice and
no tenant calls for another one's generation; without a database only this process knows it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
from asyncpg import InterfaceError, PostgresError

from actors.settings import WebhookSettings
from actors.webhooks.delivery_lock import SQL, DeliveryLock, LockedDelivery, MemoryDeliveryLock, PostgresDeliveryLock
from actors.webhooks.delivery_state import Skip, begin_call, claim_generation, mark_answered, revert_begin
from actors.webhooks.webhook_client import (
    Target,
    UnconfirmedDelivery,
    WebhookClient,
    open_webhook_client,
    parse_origin,
    resolve_target,
    strip_webhook_path,
)
from actors.webhooks.webhook_request import WebhookRequest, build_request
from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError, TemporaryError
from bus.ids import public_id
from bus.masking import mask_error
from contracts.webhook import Webhook, WebhookDone
from contracts.wire import Step

DATABASE_MISSING = "without DATABASE_URL the state of calls is kept in this process only"

log = structlog.get_logger()


@asynccontextmanager
async def open_webhook(resources: Resources) -> AsyncIterator[Handler]:
    settings = WebhookSettings()
    lock: DeliveryLock = MemoryDeliveryLock()
    if resources.database:
        lock = PostgresDeliveryLock(resources.database, resources.require_locks(DATABASE_MISSING))
        await resources.database.execute(SQL["purge"], settings.webhook_memory_days)
    else:
        log.warning("webhook.no_database", reason=DATABASE_MISSING)
    async with open_webhook_client(settings) as client:
        yield partial(webhook, client=client, lock=lock)


ACTOR = Actor(
    step=Step.WEBHOOK,
    command=Webhook,
    result=WebhookDone,
    open=open_webhook,
    timeout_seconds=60,
    prefetch=6,
    enforce_deadline=False,
    schema=SQL["schema"],
)


async def webhook(command: Webhook, context: Context, *, client: WebhookClient, lock: DeliveryLock) -> WebhookDone:
    deliver_kind = deliver_progress if command.kind == "progress" else deliver
    result = await deliver_kind(command, context, client, lock)
    return result.model_copy(update={"kind": command.kind})


async def deliver_progress(command: Webhook, context: Context, client: WebhookClient, lock: DeliveryLock) -> WebhookDone:
    try:
        return await deliver(command, context, client, lock)
    except (TemporaryError, PermanentError, PostgresError, InterfaceError, OSError) as error:
        # A late progress is useless: it is neither retried nor dead-lettered.
        log.info("webhook.progress_dropped", reason=mask_error(error))
        return WebhookDone(delivered=False, reason=mask_error(error))


async def deliver(command: Webhook, context: Context, client: WebhookClient, lock: DeliveryLock) -> WebhookDone:
    request, target = build_request(command), resolve_target(command.base_url, client.settings)
    async with lock.acquire(backend_name(target, client.settings), command.generation_id) as delivery:
        owned = claim_generation(delivery.state, command.generation_id, context.tenant)
        state = begin_call(owned, command, context.message_id)
        if isinstance(state, Skip):
            log.info("webhook.skipped", kind=command.kind, reason=state.reason)
            return WebhookDone(delivered=state.delivered, reason=state.reason)
        await delivery.save(state)
        return await send_request(command, request, target, context, client, LockedDelivery(state, delivery.save))


def backend_name(target: Target, settings: WebhookSettings) -> str:
    """Under which a backend's generations are kept: the configured one's base, also when a message names it by its origin."""
    configured = settings.backend_api_url
    return strip_webhook_path(configured) if configured and parse_origin(configured) == target.base else target.base


async def send_request(
    command: Webhook, request: WebhookRequest, target: Target, context: Context, client: WebhookClient, delivery: LockedDelivery
) -> WebhookDone:
    try:
        status = await client.send(target, request, public_id(context.message_id, "webhook"))
    except UnconfirmedDelivery as error:
        if command.kind != "failed":
            raise
        log.warning("webhook.unanswered", kind=command.kind, generation_id=command.generation_id, reason=str(error))
        return WebhookDone(delivered=False, reason=f"{error}. Not sent again: a second one might refund twice")
    except (TemporaryError, PermanentError):
        await delivery.save(revert_begin(delivery.state, command))
        raise
    await delivery.save(mark_answered(delivery.state, command))
    return WebhookDone(delivered=True, status=status)
