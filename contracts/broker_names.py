"""The names of exchanges, queues and routing keys. Other modules call these functions instead of building names."""

COMMANDS_EXCHANGE = "atelier.commands"
EVENTS_EXCHANGE = "atelier.events"
CONTROL_EXCHANGE = "atelier.control"

IMAGE_GENERATION_QUEUE = "image_generation"
"""The foreign queue. It is declared durable and with no arguments, or the backend's own declaration fails with a 406."""


MAX_KEY_ID_BYTES = 200
KEY_CHARACTERS = frozenset(".*#%")
"""Those that separate the words of a key, stand for words in a binding, or begin an escape."""

REPLY_QUEUE_PREFIXES = ("amq.gen-", "amq_", "amq.rabbitmq.reply-to", "atelier.reply.", "atelier.roll.")
"""How the names of reply queues begin: those that the broker and client libraries choose, direct reply-to, and those of our processes."""


def is_reply_queue(name: str) -> bool:
    """Whether `reply_to` may name the queue. A worker publishes replies in its own name, so it sends none to any other queue."""
    return name.startswith(REPLY_QUEUE_PREFIXES)


def work_queue(name: str) -> str:
    return f"atelier.{name}"


def dead_letter_queue(name: str) -> str:
    return f"atelier.dead.{name}"


def retry_exchange(delay_seconds: float) -> str:
    """The exchange of one retry delay; its only queue, the delay queue, has the same name."""
    return f"atelier.retry.{round(delay_seconds * 1000)}ms"


def event_routing_key(step: str, kind: str, job_id: str) -> str:
    """`<step>.<kind>.<job id>`. AMQP limits a key to 255 bytes, so the job id, which clients choose, is cut to 200."""
    return f"{step}.{kind}.{job_id.encode()[:MAX_KEY_ID_BYTES].decode(errors='ignore')}"


def escaped_event_key(step: str, kind: str, job_id: str) -> str:
    """The same key with the job id as one word, which `*` matches: `.`, `*`, `#` and `%` in it are percent-encoded."""
    if KEY_CHARACTERS.isdisjoint(job_id):
        return event_routing_key(step, kind, job_id)
    word = ""
    for character in job_id:
        escaped = f"%{ord(character):02X}" if character in KEY_CHARACTERS else character
        if len((word + escaped).encode()) > MAX_KEY_ID_BYTES:
            break
        word += escaped
    return f"{step}.{kind}.{word}"


def job_binding_key(job_id: str) -> str:
    """The binding key of every event of one job."""
    wildcards = {"*", "#"} & set(job_id.split("."))
    return (escaped_event_key if wildcards else event_routing_key)("*", "*", job_id)
