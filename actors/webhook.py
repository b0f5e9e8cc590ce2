"""Webhook: tell the backend how an image generation goes.

Reads a `progress`, a `complete` or a `failed`, calls the backend, returns whether it took it. The order of calls for one generation is kept
in `atelier.webhook_calls`; without a database it is kept in this process only.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
from asyncpg import InterfaceError, PostgresError

from actors.backend.messages import Call, call_of
from actors.backend.order import Untold, answered, begin, untold
from actors.backend.sending import AnswerUnknown, Sender, Target, open_sender, target_of
from actors.backend.turns import SQL, MemoryTurns, PostgresTurns, Turn, Turns
from actors.settings import WebhookSettings
from bus.actor import Actor, Context, Handler, Tools
from bus.errors import PermanentError, TemporaryError
from bus.ids import derived_id
from contracts.webhook import Webhook, WebhookDone
from contracts.wire import Step

log = structlog.get_logger()


@asynccontextmanager
async def open_webhook(tools: Tools) -> AsyncIterator[Handler]:
    settings = WebhookSettings()
    turns: Turns = PostgresTurns(tools.database) if tools.database else MemoryTurns()
    if tools.database:
        await tools.database.execute(SQL["forget"], settings.webhook_memory_days)
    else:
        log.warning("webhook.forgetful", reason="without DATABASE_URL the order of calls is kept in this process only")
    async with open_sender(settings) as sender:
        yield partial(webhook, sender=sender, turns=turns)


# A call holds a connection of the pool while it lasts: the prefetch stays below the pool's size.
ACTOR = Actor(
    step=Step.WEBHOOK,
    command=Webhook,
    result=WebhookDone,
    open=open_webhook,
    timeout_seconds=60,
    prefetch=6,
    expires=False,
    schema=SQL["schema"],
)


async def webhook(command: Webhook, context: Context, *, sender: Sender, turns: Turns) -> WebhookDone:
    done = await (tell_progress if command.kind == "progress" else tell)(command, context, sender, turns)
    return done.model_copy(update={"kind": command.kind})


async def tell_progress(command: Webhook, context: Context, sender: Sender, turns: Turns) -> WebhookDone:
    try:
        return await tell(command, context, sender, turns)
    except (TemporaryError, PermanentError, PostgresError, InterfaceError, OSError) as error:
        # A progress is of use only now: neither tried again nor buried.
        log.info("progress.dropped", reason=str(error))
        return WebhookDone(delivered=False, reason=str(error))


async def tell(command: Webhook, context: Context, sender: Sender, turns: Turns) -> WebhookDone:
    call, target = call_of(command), target_of(command.base_url, sender.settings)
    async with turns.turn(target.base, command.generation_id) as turn:
        begun = begin(turn.told, command, context.message_id)
        if isinstance(begun, Untold):
            log.info("webhook.untold", kind=command.kind, reason=begun.reason)
            return WebhookDone(delivered=begun.delivered, reason=begun.reason)
        await turn.keep(begun)
        return await send(command, call, target, context, sender, Turn(begun, turn.keep))


async def send(command: Webhook, call: Call, target: Target, context: Context, sender: Sender, turn: Turn) -> WebhookDone:
    try:
        status = await sender.send(target, call, derived_id(context.message_id, "webhook"))
    except AnswerUnknown as error:
        if command.kind != "failed":
            raise
        log.warning("webhook.unanswered", kind=command.kind, generation_id=command.generation_id, reason=str(error))
        return WebhookDone(delivered=False, reason=f"{error}. Not sent again: a second one might refund twice")
    except (TemporaryError, PermanentError):
        await turn.keep(untold(turn.told, command))
        raise
    await turn.keep(answered(turn.told, command))
    return WebhookDone(delivered=True, status=status)
