"""The context of one handler run: what the handler knows of its delivery, and what it may publish while it runs."""

from collections.abc import Callable

import structlog

from bus.actor import Context
from bus.amqp.publisher import Publisher
from bus.errors import CallerGone, PublishError, UnroutableMessage
from bus.worker import outgoing
from bus.worker.outgoing import StepRun
from contracts.event import Progress
from contracts.wire_model import WireModel

log = structlog.get_logger()


def build_context(run: StepRun, publisher: Publisher, runs_again: Callable[[Exception], bool]) -> Context:
    """Progress events and deltas are published once and may be lost. Without a reply queue there is no `send_delta`."""

    async def report_progress(progress: Progress) -> None:
        try:
            await publisher.publish(*outgoing.build_progress(run, progress))
        except PublishError as error:
            log.warning("progress.lost", job_id=run.delivery.job_id, error=str(error))

    async def send_delta(delta: WireModel) -> None:
        try:
            await publisher.publish(outgoing.build_delta(run, delta.model_dump(mode="json")))
        except UnroutableMessage as error:
            raise CallerGone(f"nobody awaits the reply any more: {error}") from error
        except PublishError as error:
            log.warning("delta.lost", job_id=run.delivery.job_id, error=str(error))

    delivery = run.delivery
    return Context(
        delivery.job_id,
        delivery.former_id or delivery.message_id,  # so that an effect of before the upgrade is recognised; for one release
        delivery.attempt,
        delivery.tenant,
        delivery.deadline,
        report_progress,
        send_delta if delivery.reply_to else None,
        delivery.message_id,
        runs_again,
    )
