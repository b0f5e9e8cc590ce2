"""The peers of the bus benchmark. Each is a module with `open_worker` (consumes) and `open_sender` (publishes and sends requests).

Each runs in its own process: `python -m benchmarks.peers NAME worker|sender`. It reads its `PeerConfig`, which has passwords and so
is no argument.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PeerSpec:
    """The guarantees of a peer. `replies`: it has requests with replies over RabbitMQ. `stores_outcomes`: in Postgres, before the ack."""

    module: str
    queue: str
    confirms: str
    replies: bool = True
    stores_outcomes: bool = False
    note: str = ""


OWN_MODULES = ("atelier", "atelier_middleware")
"""Those of this bus. In the processes of the others the AMQP libraries are as their authors wrote them."""

PEERS = {
    "aio_pika": PeerSpec("aio_pika", "quorum", "each"),
    "bus": PeerSpec("atelier", "quorum", "each"),
    "aio_pika_kept": PeerSpec(
        "aio_pika", "quorum", "each", stores_outcomes=True, note="two Postgres statements a message, as the inbox has"
    ),
    "bus_kept": PeerSpec("atelier", "quorum", "each", stores_outcomes=True, note="with the inbox"),
    "middleware": PeerSpec("atelier_middleware", "quorum", "each", note="this bus, its deliveries through FastStream's middleware"),
    "middleware_kept": PeerSpec("atelier_middleware", "quorum", "each", stores_outcomes=True, note="the same, with the inbox"),
    "faststream": PeerSpec("faststream", "quorum", "each", note="`request()` opens a reply consumer for each question"),
    "celery": PeerSpec(
        "celery", "quorum", "each, one after another", note="`confirm_publish`, `task_acks_late`, threads; replies by rpc://"
    ),
    "dramatiq": PeerSpec("dramatiq", "classic", "each, one after another", replies=False, note="results need Redis or Memcached"),
    "dramatiq_quorum": PeerSpec(
        "dramatiq_quorum", "quorum", "each, one after another", replies=False, note="dramatiq on quorum queues, which it has no setting for"
    ),
    "taskiq": PeerSpec("taskiq", "quorum", "each", replies=False, note="results need a backend beside RabbitMQ"),
}
