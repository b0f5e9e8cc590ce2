"""Every name on the broker. Nobody else concatenates them."""

COMMANDS_EXCHANGE = "atelier.commands"
EVENTS_EXCHANGE = "atelier.events"
CONTROL_EXCHANGE = "atelier.control"

IMAGE_GENERATION_QUEUE = "image_generation"
"""The foreign queue. Declared durable with no arguments at all, or the real backend gets a 406."""


def work_queue(name: str) -> str:
    return f"atelier.{name}"


def dead_letter_queue(name: str) -> str:
    return f"atelier.dead.{name}"


def retry_exchange(delay_seconds: float) -> str:
    """The exchange of one rung of the retry ladder; its single queue bears the same name."""
    return f"atelier.retry.{round(delay_seconds * 1000)}ms"


def event_routing_key(step: str, kind: str, job_id: str) -> str:
    """A key has at most 255 bytes, and a stranger's job id may have as many by itself: its beginning counts."""
    return f"{step}.{kind}.{job_id.encode()[:200].decode(errors='ignore')}"
