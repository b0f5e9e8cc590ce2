"""Names on the broker."""

from contracts.channels import event_key


def test_a_strangers_job_id_never_makes_a_key_too_long() -> None:
    """AMQP allows 255 bytes."""
    assert len(event_key("image_generation", "completed", "안" * 85).encode()) <= 255
