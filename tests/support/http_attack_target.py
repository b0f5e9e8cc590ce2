"""What the attacks of `http_attacks.py` are measured against: a gateway process with a key, and a job with a file of 9 MB."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bus.actor import Actor, Context, Handler, Resources, query_actor
from bus.observability.logs import configure_logging
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from contracts.claim import Claim
from contracts.job import GetJob, Job
from ops.local.rabbitmq import RabbitNode
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.settings import LocalSettings
from tests.support.gateway_process import GatewayProcess, open_gateway_process

KEY = "honest-" + "k" * 32
OTHER_KEY = "other-" + "o" * 32
"""Of another tenant."""
FILE_BYTES = 9_000_000
FILE_PATH = "/jobs/j-1/files/large.bin"


@asynccontextmanager
async def open_target(**settings: str) -> AsyncIterator[tuple[GatewayProcess, str, str]]:
    """The gateway, its key, and the path of a file of 9 MB. `settings`: the gateway's environment."""
    configure_logging("ERROR")
    with TemporaryDirectory(prefix="atelier-attacks-") as name:
        node = RabbitNode(Path(name) / "rabbitmq", find_or_install_rabbitmq(LocalSettings()))
        await asyncio.to_thread(node.start)
        try:
            async with open_gateway_with_file(
                BusSettings.model_validate({"amqp_url": node.url}), Path(name) / "store", **settings
            ) as opened:
                yield opened
        finally:
            await asyncio.to_thread(node.stop)


@asynccontextmanager
async def open_gateway_with_file(bus: BusSettings, store: Path, **settings: str) -> AsyncIterator[tuple[GatewayProcess, str, str]]:
    """The same on a running broker. A worker in this process answers the gateway's queries about the one job."""
    keys = f"shop:{KEY} other:{OTHER_KEY}"
    defaults = {"GATEWAY_API_KEYS": keys, "STORE_URL": store.as_uri(), "GATEWAY_RATE_REQUESTS": "0", "GATEWAY_MAX_REQUESTS": "100"}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Worker([job_actor()], (), bus, StoreSettings(store_url=store.as_uri())).run())
        yield await stack.enter_async_context(open_gateway_process(bus, **defaults | settings)), KEY, FILE_PATH


def job_actor() -> Actor:
    """Answers `job.get` for every id with a completed job that has the file."""

    @asynccontextmanager
    async def open_handler(resources: Resources) -> AsyncIterator[Handler]:
        data = os.urandom(FILE_BYTES)
        claim = await resources.claims.put("large.bin", data, tenant="shop", media_type="application/octet-stream")

        async def get_job(command: GetJob, context: Context) -> Job:
            return job_with_file(command.job_id, claim)

        yield get_job

    return query_actor("job.get", GetJob, Job, open_handler, "Returns a job with a file.", timeout_seconds=10, prefetch=16)


def job_with_file(job_id: str, claim: Claim) -> Job:
    now = datetime.now(UTC)
    fields: dict[str, Any] = {"job_id": job_id, "state": "completed", "created_at": now, "updated_at": now, "tenant": "shop"}
    return Job.model_validate(fields | {"steps": [], "result": {"files": [claim.model_dump(mode="json")]}})
