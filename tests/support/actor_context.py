"""The context of a handler, for tests that call one directly."""

from bus.actor import Context
from contracts.event import Progress


async def ignore_progress(progress: Progress) -> None:
    """Progress is not reported."""


def make_context(message_id: str = "message-1", job_id: str = "generation-7", tenant: str | None = None) -> Context:
    return Context(job_id=job_id, message_id=message_id, attempt=1, tenant=tenant, deadline=None, report_progress=ignore_progress)
