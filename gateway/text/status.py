"""The text worker's status, queried over the bus and cached for a second. `/health` and `/status/detailed` report it."""

import asyncio
import time
from typing import Any

from bus.amqp.request_reply import ReplyFault
from contracts.conversation import Conversations
from contracts.text import TextStatus
from gateway.commands import CommandClient
from gateway.problems import REQUEST_ERRORS
from gateway.strict_model import HttpModel

STATUS_STEPS = ("text.status", "conversation.list")
"""The steps that are queried here."""


class TextStatusSnapshot(HttpModel):
    """`served`: a text worker consumes its queue. While it loads its model, it has no `status`."""

    served: bool = False
    status: TextStatus | None = None
    conversations: int = 0
    messages: int = 0

    @property
    def loading(self) -> bool:
        return self.served and self.status is None


class TextStatusCache:
    """The latest snapshot. A query is published only when its queue has a consumer."""

    def __init__(self, commands: CommandClient, max_age_seconds: float = 1.0, timeout_seconds: float = 2.0) -> None:
        self._commands, self._max_age_seconds, self._timeout_seconds = commands, max_age_seconds, timeout_seconds
        self._snapshot, self._fetched_at, self._lock = TextStatusSnapshot(), -max_age_seconds, asyncio.Lock()
        self.started_at = time.monotonic()

    @property
    def uptime(self) -> float:
        """Seconds since the gateway's start."""
        return round(time.monotonic() - self.started_at, 1)

    async def latest(self) -> TextStatusSnapshot:
        async with self._lock:
            if time.monotonic() - self._fetched_at >= self._max_age_seconds:
                self._snapshot, self._fetched_at = await self._fetch(), time.monotonic()
            return self._snapshot

    async def _fetch(self) -> TextStatusSnapshot:
        try:
            if not await self._commands.requests.has_consumer("text.status"):
                return TextStatusSnapshot()
            status, listing = await asyncio.gather(self._query("text.status"), self._query("conversation.list", limit=1))
        except REQUEST_ERRORS:
            return TextStatusSnapshot()
        conversations = Conversations.model_validate(listing) if listing else None
        return TextStatusSnapshot(
            served=True,
            status=TextStatus.model_validate(status) if status else None,
            conversations=conversations.total_conversations if conversations else 0,
            messages=conversations.total_messages if conversations else 0,
        )

    async def _query(self, step: str, **fields: Any) -> dict[str, Any] | None:
        """The reply; None without a consumer, on a timeout and while the worker loads its model."""
        if not await self._commands.requests.has_consumer(step):
            return None
        try:
            return await self._commands.query(step, fields, seconds=self._timeout_seconds)
        except REQUEST_ERRORS as error:
            if isinstance(error, ReplyFault) and error.fault.code != "loading":
                raise
            return None


def health_fields(snapshot: TextStatusSnapshot, uptime: float) -> dict[str, Any]:
    """The fields of the CloudLLM API in `/health`."""
    status = snapshot.status
    return {
        "model_loaded": status is not None,
        "model_name": status.model_name if status else None,
        "engine_type": "vLLM",
        "device": status.device if status else None,
        "gpu_memory_used": status.gpu_memory_used if status else None,
        "gpu_memory_total": status.gpu_memory_total if status else None,
        "vllm_stats": engine_stats(status),
        "engine_config": status.engine_config if status else {},
        "active_conversations": snapshot.conversations,
        "uptime": uptime,
    }


def engine_stats(status: TextStatus | None) -> dict[str, Any]:
    """The engine and its batch: requests that are in it, and those that wait for a place in it."""
    return {
        "engine_status": status.engine_status if status else "stopped",
        "pending_requests": status.pending_requests if status else 0,
        "running_requests": status.running_requests if status else 0,
    }
