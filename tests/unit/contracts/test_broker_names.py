"""Names of exchanges, queues and routing keys."""

from contracts.broker_names import event_routing_key


def test_long_foreign_job_id_is_shortened_in_event_key() -> None:
    """AMQP allows 255 bytes."""
    assert len(event_routing_key("image_generation", "completed", "안" * 85).encode()) <= 255
