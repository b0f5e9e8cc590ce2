"""What happened to the deliveries of a worker process: one byte for each stage, written at once, so that none is missing after SIGKILL."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

BEGUN, REDELIVERED, DECIDED, ENDED = b"+", b"r", b"d", b"-"
"""A delivery has begun, which the broker had delivered before; its result is stored, or its failure certain; it is published and acked."""


@dataclass(frozen=True)
class DeliveryCounts:
    """`redelivered` ones have begun as well."""

    begun: int = 0
    redelivered: int = 0
    decided: int = 0
    ended: int = 0

    @classmethod
    def read(cls, journal: Path) -> Self:
        """Of a process that has not begun any, none."""
        entries = journal.read_bytes() if journal.exists() else b""
        return cls(*(entries.count(stage) for stage in (BEGUN, REDELIVERED, DECIDED, ENDED)))

    @property
    def in_progress(self) -> int:
        return self.begun - self.ended

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.begun + other.begun,
            self.redelivered + other.redelivered,
            self.decided + other.decided,
            self.ended + other.ended,
        )


def write_journal(journal: Path, consumer: type[Any], adapter_consumer: type[Any]) -> None:
    """From now on the consumers of this process write their deliveries into the journal."""
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(stage: bytes) -> None:
        os.write(file, stage)

    for owner in (consumer, adapter_consumer):
        owner.on_message = noted_delivery(owner.on_message, note)
    consumer.publish_outcome = noted_outcome(consumer.publish_outcome, note)


def noted_delivery(on_message: Callable[..., Any], note: Callable[[bytes], None]) -> Callable[..., Any]:
    async def on_noted_message(self: Any, message: Any) -> None:
        note(BEGUN + REDELIVERED if message.redelivered else BEGUN)
        await on_message(self, message)
        note(ENDED)

    return on_noted_message


def noted_outcome(publish_outcome: Callable[..., Any], note: Callable[[bytes], None]) -> Callable[..., Any]:
    async def publish_noted_outcome(self: Any, run: Any, outcome: Any) -> Any:
        note(DECIDED)
        return await publish_outcome(self, run, outcome)

    return publish_noted_outcome
