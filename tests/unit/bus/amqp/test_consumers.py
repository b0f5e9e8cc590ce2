"""Rules for every consumer and connection of the product, read from its code: the next one that is added is held to them."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.architecture import PRODUCT, SourceFile, source_files

ROOT = Path(__file__).parents[4]
GUARDED_CONSUMERS = {
    "bus/amqp/exclusive_queue.py": "the callback that logs every error",
    "bus/amqp/broker.py": "callbacks of DeliveryConsumer, AdapterConsumer and DeadLetterConsumer, which end every delivery",
}
TOLERANT_CONNECTIONS = {"bus/amqp/broker.py", "bus/amqp/publisher.py"}
PROBES = {"bus/observability/probes.py": "it consumes nothing"}


def product_calls(*names: str) -> Iterator[tuple[SourceFile, ast.Call]]:
    """The calls of functions or methods with one of these names."""
    for source in source_files(ROOT):
        if source.package in PRODUCT:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Call) and _name(node.func) in names:
                    yield source, node


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _reads_messages(call: ast.Call) -> bool:
    """`consume(callback, …)` of a queue; not `consume()` of our own."""
    return bool(call.args)


def test_every_consumer_ends_a_message_that_fails() -> None:
    """A callback that raises would leave its message unacknowledged, or be reported by the client library alone."""
    files = {str(source.path) for source, call in product_calls("consume") if _reads_messages(call)}
    assert files == set(GUARDED_CONSUMERS)


def test_every_connection_decodes_tolerantly() -> None:
    """One connection that does not would be closed by the first frame that pamqp refuses."""
    files = {str(source.path) for source, call in product_calls("connect_robust", "RabbitBroker")}
    files |= {str(source.path) for source, call in product_calls("connect") if ast.unparse(call.func) == "aio_pika.connect"}
    assert files == TOLERANT_CONNECTIONS | PROBES.keys()
    assert {str(source.path) for source, _ in product_calls("make_decoding_tolerant")} == TOLERANT_CONNECTIONS
