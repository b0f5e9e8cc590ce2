"""A dead letter's record, as it is made from a message of a dead-letter queue."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from bus.dead_letters.record import DeadLetterRecord

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_record(headers: dict[str, Any] | None = None, *, queue: str = "atelier.dead.image", **properties: Any) -> DeadLetterRecord:
    defaults = {
        "message_id": "m-1",
        "correlation_id": "j-1",
        "type": "image.v1",
        "content_type": None,
        "content_encoding": None,
        "body": b"{}",
    }
    return DeadLetterRecord.from_message(SimpleNamespace(headers=headers or {}, **(defaults | properties)), queue, NOW)  # type: ignore[arg-type]
