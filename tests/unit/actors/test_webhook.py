"""The webhook actor against a real HTTP server: what is said, in which order, what each answer means. Memory is this process's own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import pytest
from standardwebhooks import Webhook as StandardWebhook

from actors.settings import WebhookSettings
from actors.webhook import webhook
from actors.webhooks.delivery_lock import MemoryDeliveryLock
from actors.webhooks.webhook_client import open_webhook_client
from bus.actor import Context, Handler
from bus.errors import PermanentError, TemporaryError
from contracts.webhook import Webhook
from tests.support.actor_context import make_context
from tests.support.webhook_backend import WebhookBackend

SECRET = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQtMTIzNA=="
PROGRESS = {"current_step": 38, "total_steps": 50, "progress_percent": 76, "estimated_seconds": 3}
COMPLETE = Webhook(
    kind="complete", generation_id=7, result_url="https://cdn.example/7.png", metadata={"seed": 42, "steps": 50, "guidance_scale": 7.5}
)
FAILED = Webhook.model_validate(
    {"kind": "failed", "generation_id": 7, "fault": {"code": "out-of-memory", "message": "too large", "step": "image"}}
)


def progress(percent: int = 76) -> Webhook:
    return Webhook.model_validate({"kind": "progress", "generation_id": 7, "progress": PROGRESS | {"progress_percent": percent}})


@asynccontextmanager
async def open_handler(url: str | None, **more: Any) -> AsyncIterator[Handler]:
    settings = WebhookSettings(BACKEND_API_URL=url, internal_api_token="t" * 32, **more)
    async with open_webhook_client(settings) as sender:
        yield partial(webhook, client=sender, lock=MemoryDeliveryLock())


@pytest.fixture
async def send_webhook(backend: WebhookBackend) -> AsyncIterator[Handler]:
    async with open_handler(backend.url, webhook_timeout_seconds=5) as handler:
        yield handler


async def test_progress_is_a_patch_with_whole_numbers(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    done = await send_webhook(progress(), context)
    (heard,) = backend.requests
    assert (heard.method, heard.path) == ("PATCH", "/api/webhooks/inference/progress")
    assert heard.body == {"generation_id": 7, "progress": PROGRESS}
    assert (done.delivered, done.status) == (True, 200)


async def test_complete_carries_the_address_and_how_it_was_made(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(COMPLETE, context)
    (heard,) = backend.requests
    assert (heard.method, heard.path) == ("POST", "/api/webhooks/inference/complete")
    assert heard.body == {
        "generation_id": 7,
        "result_url": "https://cdn.example/7.png",
        "metadata": {"seed": 42, "steps": 50, "guidance_scale": 7.5},
    }


async def test_complete_without_metadata_omits_it(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(COMPLETE.model_copy(update={"metadata": {}}), context)
    assert backend.requests[0].body == {"generation_id": 7, "result_url": "https://cdn.example/7.png"}


async def test_complete_webhook_lists_all_images(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(COMPLETE.model_copy(update={"result_urls": ["https://a", "https://b"]}), context)
    assert backend.requests[0].body["result_urls"] == ["https://a", "https://b"]


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("out-of-memory", "GPU_OOM"),
        ("attempts-exhausted", "GENERATION_FAILED"),
        ("cancelled", "CANCELLED"),
        ("lora-missing", "LORA_MISSING"),
    ],
)
async def test_failed_webhook_contains_reason_and_final_flag(
    send_webhook: Handler, backend: WebhookBackend, context: Context, code: str, word: str
) -> None:
    fault = {"code": code, "message": "too large", "step": "image", "attempts": 1}
    await send_webhook(Webhook.model_validate({"kind": "failed", "generation_id": 7, "fault": fault}), context)
    (heard,) = backend.requests
    assert (heard.method, heard.path) == ("POST", "/api/webhooks/inference/failed")
    assert heard.body == {"generation_id": 7, "error_message": "too large", "error_code": word, "retry_count": 3}


async def test_failed_without_a_fault_is_the_backends_own_default(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(Webhook(kind="failed", generation_id=7), context)
    assert backend.requests[0].body["error_code"] == "GENERATION_FAILED"


async def test_every_call_bears_the_token_and_its_source(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(COMPLETE, context)
    headers = backend.requests[0].headers
    assert headers["authorization"] == "Bearer " + "t" * 32
    assert headers["x-request-source"] == "inference-server"
    assert headers["content-type"] == "application/json"


async def test_the_signature_is_one_that_the_standards_own_library_verifies(backend: WebhookBackend, context: Context) -> None:
    async with open_handler(backend.url, webhook_secret=f"{SECRET} whsec_b3RoZXI=") as tell:
        await tell(COMPLETE, context)
    heard = backend.requests[0]
    assert StandardWebhook(SECRET).verify(heard.body_bytes, heard.headers) == heard.body
    assert len(heard.headers["webhook-signature"].split(" ")) == 2


async def test_webhook_id_is_stable_across_retries(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    backend.responses = [503]
    with pytest.raises(TemporaryError):
        await send_webhook(COMPLETE, context)
    await send_webhook(COMPLETE, context)
    await send_webhook(progress(), make_context("another"))
    first, second = backend.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert "." not in first.headers["webhook-id"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
async def test_client_error_is_permanent(send_webhook: Handler, backend: WebhookBackend, context: Context, status: int) -> None:
    backend.responses = [status]
    with pytest.raises(PermanentError, match=f"{status}.*Generation not found") as error:
        await send_webhook(COMPLETE, context)
    assert error.value.code == "webhook-rejected"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_server_error_is_temporary(send_webhook: Handler, backend: WebhookBackend, context: Context, status: int) -> None:
    backend.responses = [status]
    with pytest.raises(TemporaryError) as error:
        await send_webhook(COMPLETE, context)
    assert (error.value.delay, error.value.code) == (None, "webhook-unanswered")


async def test_retry_after_in_seconds_is_respected(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    backend.responses = [(429, {"Retry-After": "17"})]
    with pytest.raises(TemporaryError) as error:
        await send_webhook(COMPLETE, context)
    assert error.value.delay == 17


async def test_retry_after_as_a_date_is_respected(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    backend.responses = [(503, {"Retry-After": later})]
    with pytest.raises(TemporaryError) as error:
        await send_webhook(COMPLETE, context)
    assert error.value.delay == pytest.approx(90, abs=5)


@pytest.mark.parametrize("said", ["soon", "-3", "9" * 400, ""])
async def test_invalid_retry_after_is_ignored(send_webhook: Handler, backend: WebhookBackend, context: Context, said: str) -> None:
    backend.responses = [(429, {"Retry-After": said})]
    with pytest.raises(TemporaryError) as error:
        await send_webhook(COMPLETE, context)
    assert error.value.delay is None or 0 <= error.value.delay < 10**9


async def test_a_redirect_is_a_refusal_and_not_followed(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    backend.responses = [(307, {"Location": f"{backend.url}/elsewhere"})]
    with pytest.raises(PermanentError) as error:
        await send_webhook(COMPLETE, context)
    assert error.value.code == "webhook-rejected"
    assert len(backend.requests) == 1


async def test_backend_timeout_is_temporary(backend: WebhookBackend, context: Context) -> None:
    backend.release_event = asyncio.Event()
    async with open_handler(backend.url, webhook_timeout_seconds=0.2) as tell:
        with pytest.raises(TemporaryError) as error:
            await tell(COMPLETE, context)
    assert error.value.code == "webhook-unanswered"


async def test_a_backend_that_is_not_there_is_temporary(context: Context, unused_tcp_port: int) -> None:
    async with open_handler(f"http://127.0.0.1:{unused_tcp_port}") as tell:
        for command in (COMPLETE, FAILED.model_copy(update={"generation_id": 8})):
            with pytest.raises(TemporaryError):
                await tell(command, context)


@pytest.mark.parametrize("answer", [503, 404, None, (302, {"Location": "/"})])
async def test_failed_progress_is_not_retried_or_dead_lettered(
    send_webhook: Handler, backend: WebhookBackend, context: Context, answer: int | tuple[int, dict[str, str]] | None
) -> None:
    backend.responses = [answer]
    done = await send_webhook(progress(), context)
    assert not done.delivered
    assert done.reason


async def test_progress_after_the_end_is_dropped(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(COMPLETE, context)
    done = await send_webhook(progress(90), make_context("late"))
    assert (done.delivered, backend.paths) == (False, ["complete"])


async def test_decreasing_progress_is_dropped(send_webhook: Handler, backend: WebhookBackend) -> None:
    told = [(await send_webhook(progress(percent), make_context(f"m{index}"))).delivered for index, percent in enumerate([25, 0, 25, 50])]
    assert told == [True, False, False, True]
    assert [heard.body["progress"]["progress_percent"] for heard in backend.requests] == [25, 50]


async def test_complete_waits_for_running_progress(send_webhook: Handler, backend: WebhookBackend) -> None:
    backend.release_event = asyncio.Event()
    first = asyncio.create_task(send_webhook(progress(), make_context("m1")))
    await backend.request_semaphore.acquire()
    last = asyncio.create_task(send_webhook(COMPLETE, make_context("m2")))
    await asyncio.sleep(0.05)
    assert backend.paths == ["progress"]
    backend.release_event.set()
    await asyncio.gather(first, last)
    assert backend.paths == ["progress", "complete"]


async def test_a_complete_delivered_again_is_not_sent_again(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(COMPLETE, context)
    again = await send_webhook(COMPLETE, context)
    assert (again.delivered, len(backend.requests)) == (True, 1)


async def test_failed_is_sent_once(send_webhook: Handler, backend: WebhookBackend) -> None:
    await send_webhook(FAILED, make_context("m1"))
    await send_webhook(FAILED, make_context("m1"))
    await send_webhook(FAILED, make_context("m2"))
    assert backend.paths == ["failed"]


async def test_failed_is_never_sent_after_complete(send_webhook: Handler, backend: WebhookBackend) -> None:
    await send_webhook(COMPLETE, make_context("m1"))
    done = await send_webhook(FAILED, make_context("m2"))
    assert (done.delivered, backend.paths) == (False, ["complete"])


async def test_rejected_failed_webhook_is_sent_again(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    backend.responses = [503]
    with pytest.raises(TemporaryError):
        await send_webhook(FAILED, context)
    done = await send_webhook(FAILED, context)
    assert (done.delivered, backend.paths) == (True, ["failed", "failed"])


@pytest.mark.parametrize("answer", [None, 504])
async def test_a_failed_with_an_unknown_answer_is_never_sent_again(
    send_webhook: Handler, backend: WebhookBackend, context: Context, answer: int | None
) -> None:
    """The backend refunds at every `failed` it hears: rather none than two."""
    backend.responses = [answer]
    first = await send_webhook(FAILED, context)
    second = await send_webhook(FAILED, make_context("replayed"))
    assert (first.delivered, second.delivered, backend.paths) == (False, False, ["failed"])
    assert "refund" in (first.reason or "")


async def test_replayed_order_can_complete(send_webhook: Handler, backend: WebhookBackend) -> None:
    await send_webhook(FAILED, make_context("m1"))
    assert (await send_webhook(COMPLETE, make_context("m2"))).delivered
    assert backend.paths == ["failed", "complete"]


@pytest.mark.parametrize("kind", ["progress", "complete"])
async def test_incomplete_command_is_not_sent(send_webhook: Handler, backend: WebhookBackend, context: Context, kind: str) -> None:
    command = Webhook.model_validate({"kind": kind, "generation_id": 7})
    if kind == "progress":
        assert not (await send_webhook(command, context)).delivered
    else:
        with pytest.raises(PermanentError) as error:
            await send_webhook(command, context)
        assert error.value.code == "webhook-incomplete"
    assert backend.requests == []


def at(address: str) -> Webhook:
    return COMPLETE.model_copy(update={"base_url": address})


async def test_message_url_is_ignored_by_default(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(at("https://attacker.example/steal"), context)
    assert backend.paths == ["complete"]


@pytest.mark.parametrize("address", ["http://169.254.169.254", "http://10.0.0.1:8000", "https://[::ffff:127.0.0.1]", "https://[fd00::1]"])
async def test_a_private_address_in_a_message_is_refused(context: Context, address: str) -> None:
    async with open_handler("https://backend.example") as tell:
        with pytest.raises(PermanentError) as error:
            await tell(at(address), context)
    assert error.value.code == "webhook-address-refused"


async def test_an_allowed_host_with_a_private_address_is_refused(backend: WebhookBackend, context: Context) -> None:
    async with open_handler(None, webhook_allowed_hosts="localhost,127.0.0.1", allow_plain_http=True) as tell:
        for address in (backend.url, backend.url.replace("127.0.0.1", "localhost")):
            with pytest.raises(PermanentError) as error:
                await tell(at(address), context)
            assert error.value.code == "webhook-address-refused"
    assert backend.requests == []


async def test_an_allowed_host_must_speak_https(backend: WebhookBackend, context: Context) -> None:
    async with open_handler(None, webhook_allowed_hosts="127.0.0.1", allow_private_addresses=True) as tell:
        with pytest.raises(PermanentError, match="https") as error:
            await tell(at(backend.url), context)
    assert error.value.code == "webhook-address-refused"


async def test_with_both_allowed_the_address_in_the_message_is_called(backend: WebhookBackend, context: Context) -> None:
    async with open_handler(
        "https://backend.example", webhook_allowed_hosts="localhost", allow_plain_http=True, allow_private_addresses=True
    ) as tell:
        named = backend.url.replace("127.0.0.1", "localhost") + "/api/webhooks/generation/7/status"
        await tell(at(named), context)
    (heard,) = backend.requests
    assert heard.path == "/api/webhooks/inference/complete"
    assert heard.headers["host"].startswith("localhost:")


async def test_missing_backend_url_is_reported(context: Context) -> None:
    async with open_handler(None) as tell:
        with pytest.raises(PermanentError, match="BACKEND_API_URL") as error:
            await tell(COMPLETE, context)
    assert error.value.code == "webhook-address-refused"


def test_no_secret_shows_in_the_settings() -> None:
    assert "s3cr3t" not in repr(WebhookSettings(webhook_secret="s3cr3t", internal_api_token="s3cr3t"))
