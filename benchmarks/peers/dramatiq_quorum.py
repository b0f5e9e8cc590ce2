"""Dramatiq as in `dramatiq.py`, on quorum queues: what the promise of the other sides costs it.

It has no setting for the type of its queues. A message that a classic queue has confirmed is on one disk; that of a quorum queue
is in the log of a majority of the nodes.
"""

from typing import Any

from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.peers import dramatiq as classic
from benchmarks.peers.workload import PeerConfig


class QuorumBroker(RabbitmqBroker):
    """Declares each queue with its arguments and the type of its own."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)  # type: ignore[no-untyped-call]
        return {**arguments, "x-queue-type": "quorum"}


def open_worker(config: PeerConfig) -> Any:
    """An asynchronous context manager, as that of the classic queue."""
    return classic.open_worker(config, QuorumBroker)


def open_sender(config: PeerConfig) -> Any:
    """An asynchronous context manager, as that of the classic queue."""
    return classic.open_sender(config, QuorumBroker)


__all__ = ["open_sender", "open_worker"]
