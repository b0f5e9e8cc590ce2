"""What an actor is given: a context, and the real parts that need nothing outside this process."""

from bus.actor import Context
from contracts.event import Progress


async def ignore_progress(progress: Progress) -> None:
    """Nobody listens to the progress."""


def make_context(message_id: str = "message-1", job_id: str = "generation-7") -> Context:
    return Context(job_id=job_id, message_id=message_id, attempt=1, tenant=None, deadline=None, report_progress=ignore_progress)
