"""The webhook actor against a real HTTP server: requests, their order, and the meaning of each response. Without a database."""

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
from actors.webhooks.webhook_client import Target, open_webhook_client, resolve_target
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
    settings = WebhookSettings(BACKEND_API_URL=url, **{"internal_api_token": "t" * 32} | more)
    async with open_webhook_client(settings) as client:
        yield partial(webhook, client=client, lock=MemoryDeliveryLock())


@pytest.fixture
async def send_webhook(backend: WebhookBackend) -> AsyncIterator[Handler]:
    async with open_handler(backend.url, webhook_timeout_seconds=5) as handler:
        yield handler


async def test_progress_is_a_patch_with_whole_numbers(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    done = await send_webhook(progress(), context)
    (request,) = backend.requests
    assert (request.method, request.path) == ("PATCH", "/api/webhooks/inference/progress")
    assert request.body == {"generation_id": 7, "progress": PROGRESS}
    assert (done.delivered, done.status) == (True, 200)


async def test_complete_contains_address_and_metadata(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(COMPLETE, context)
    (request,) = backend.requests
    assert (request.method, request.path) == ("POST", "/api/webhooks/inference/complete")
    assert request.body == {
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
    ("code", "error_code"),
    [
        ("out-of-memory", "GPU_OOM"),
        ("attempts-exhausted", "GENERATION_FAILED"),
        ("cancelled", "CANCELLED"),
        ("lora-missing", "LORA_MISSING"),
    ],
)
async def test_failed_webhook_contains_reason_and_final_flag(
    send_webhook: Handler, backend: WebhookBackend, context: Context, code: str, error_code: str
) -> None:
    fault = {"code": code, "message": "too large", "step": "image", "attempts": 1}
    await send_webhook(Webhook.model_validate({"kind": "failed", "generation_id": 7, "fault": fault}), context)
    (request,) = backend.requests
    assert (request.method, request.path) == ("POST", "/api/webhooks/inference/failed")
    assert request.body == {"generation_id": 7, "error_message": "too large", "error_code": error_code, "retry_count": 3}


async def test_failed_without_fault_uses_default_error_code(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(Webhook(kind="failed", generation_id=7), context)
    assert backend.requests[0].body["error_code"] == "GENERATION_FAILED"


async def test_every_call_has_token_and_source_headers(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(COMPLETE, context)
    headers = backend.requests[0].headers
    assert headers["authorization"] == "Bearer " + "t" * 32
    assert headers["x-request-source"] == "inference-server"
    assert headers["content-type"] == "application/json"


async def test_signature_is_verified_by_the_standardwebhooks_library(backend: WebhookBackend, context: Context) -> None:
    async with open_handler(backend.url, webhook_secret=f"{SECRET} whsec_{'b3RoZXI0' * 4}") as handler:
        await handler(COMPLETE, context)
    request = backend.requests[0]
    assert StandardWebhook(SECRET).verify(request.body_bytes, request.headers) == request.body
    assert len(request.headers["webhook-signature"].split(" ")) == 2


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


@pytest.mark.parametrize(("value", "delay"), [("soon", None), ("-3", None), ("", None), ("9" * 400, 999_999_999)])
async def test_invalid_retry_after_is_ignored_and_huge_one_limited(
    send_webhook: Handler, backend: WebhookBackend, context: Context, value: str, delay: float | None
) -> None:
    backend.responses = [(429, {"Retry-After": value})]
    with pytest.raises(TemporaryError) as error:
        await send_webhook(COMPLETE, context)
    assert error.value.delay == delay


@pytest.mark.parametrize("location", ["{url}/elsewhere", "https://xn--a/", "http://["])
async def test_redirect_is_a_rejection_and_not_followed(
    send_webhook: Handler, backend: WebhookBackend, context: Context, location: str
) -> None:
    backend.responses = [(307, {"Location": location.format(url=backend.url)})]
    with pytest.raises(PermanentError) as error:
        await send_webhook(COMPLETE, context)
    assert error.value.code == "webhook-rejected"
    assert len(backend.requests) == 1


async def test_backend_timeout_is_temporary(backend: WebhookBackend, context: Context) -> None:
    backend.release_event = asyncio.Event()
    async with open_handler(backend.url, webhook_timeout_seconds=0.2) as handler:
        with pytest.raises(TemporaryError) as error:
            await handler(COMPLETE, context)
    assert error.value.code == "webhook-unanswered"


async def test_error_of_a_call_does_not_quote_its_headers(backend: WebhookBackend, context: Context) -> None:
    settings = WebhookSettings(BACKEND_API_URL=backend.url).model_copy(update={"webhook_source": "secret\n"})  # no value of a header
    async with open_webhook_client(settings) as client:
        with pytest.raises(TemporaryError, match="did not respond") as error:
            await webhook(COMPLETE, context, client=client, lock=MemoryDeliveryLock())
    assert "secret" not in str(error.value)


async def test_unreachable_backend_is_temporary(context: Context, unused_tcp_port: int) -> None:
    async with open_handler(f"http://127.0.0.1:{unused_tcp_port}") as handler:
        for command in (COMPLETE, FAILED.model_copy(update={"generation_id": 8})):
            with pytest.raises(TemporaryError):
                await handler(command, context)


@pytest.mark.parametrize("response", [503, 404, None, (302, {"Location": "/"})])
async def test_failed_progress_is_not_retried_or_dead_lettered(
    send_webhook: Handler, backend: WebhookBackend, context: Context, response: int | tuple[int, dict[str, str]] | None
) -> None:
    backend.responses = [response]
    done = await send_webhook(progress(), context)
    assert not done.delivered
    assert done.reason


async def test_progress_after_the_end_is_dropped(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(COMPLETE, context)
    done = await send_webhook(progress(90), make_context("late"))
    assert (done.delivered, backend.paths) == (False, ["complete"])


async def test_decreasing_progress_is_dropped(send_webhook: Handler, backend: WebhookBackend) -> None:
    percents = [25, 0, 25, 50]
    results = [await send_webhook(progress(percent), make_context(f"m{index}")) for index, percent in enumerate(percents)]
    assert [result.delivered for result in results] == [True, False, False, True]
    assert [request.body["progress"]["progress_percent"] for request in backend.requests] == [25, 50]


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


async def test_redelivered_complete_is_not_sent_again(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
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


@pytest.mark.parametrize("response", [None, 504])
async def test_failed_with_unknown_response_is_never_sent_again(
    send_webhook: Handler, backend: WebhookBackend, context: Context, response: int | None
) -> None:
    """The backend refunds at every `failed`: a missing one is better than a second one."""
    backend.responses = [response]
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


def complete_to(address: str) -> Webhook:
    return COMPLETE.model_copy(update={"base_url": address})


async def test_message_url_is_ignored_by_default(send_webhook: Handler, backend: WebhookBackend, context: Context) -> None:
    await send_webhook(complete_to("https://attacker.example/steal"), context)
    assert backend.paths == ["complete"]


@pytest.mark.parametrize("address", ["http://169.254.169.254", "http://10.0.0.1:8000", "https://[::ffff:127.0.0.1]", "https://[fd00::1]"])
async def test_private_address_in_message_is_refused(context: Context, address: str) -> None:
    async with open_handler("https://backend.example") as handler:
        with pytest.raises(PermanentError) as error:
            await handler(complete_to(address), context)
    assert error.value.code == "webhook-address-refused"


async def test_allowed_host_with_private_address_is_refused(backend: WebhookBackend, context: Context) -> None:
    async with open_handler(None, webhook_allowed_hosts="localhost,127.0.0.1", allow_plain_http=True) as handler:
        for address in (backend.url, backend.url.replace("127.0.0.1", "localhost")):
            with pytest.raises(PermanentError) as error:
                await handler(complete_to(address), context)
            assert error.value.code == "webhook-address-refused"
    assert backend.requests == []


async def test_allowed_host_must_use_https(backend: WebhookBackend, context: Context) -> None:
    async with open_handler(None, webhook_allowed_hosts="127.0.0.1", allow_private_addresses=True) as handler:
        with pytest.raises(PermanentError, match="https") as error:
            await handler(complete_to(backend.url), context)
    assert error.value.code == "webhook-address-refused"


async def test_address_in_message_is_called_when_host_and_private_addresses_are_allowed(backend: WebhookBackend, context: Context) -> None:
    async with open_handler(
        "https://backend.example", webhook_allowed_hosts="localhost", allow_plain_http=True, allow_private_addresses=True
    ) as handler:
        address = backend.url.replace("127.0.0.1", "localhost") + "/api/webhooks/generation/7/status"
        await handler(complete_to(address), context)
    (request,) = backend.requests
    assert request.path == "/api/webhooks/inference/complete"
    assert request.headers["host"].startswith("localhost:")


@pytest.mark.parametrize(
    "suffix",
    [
        "/admin/delete",
        "/admin?all=1",
        "/api/webhooks/../admin",
        "?x=/api/webhooks",
        "#/api/webhooks",
        "/x/api/webhooks/y",
        "//admin",
        "/%2e%2e",
    ],
)
async def test_address_in_message_chooses_no_path(backend: WebhookBackend, context: Context, suffix: str) -> None:
    async with open_handler(None, webhook_allowed_hosts="localhost", allow_plain_http=True, allow_private_addresses=True) as handler:
        await handler(complete_to(backend.url.replace("127.0.0.1", "LOCALHOST") + suffix), context)
    assert [request.path for request in backend.requests] == ["/api/webhooks/inference/complete"]


@pytest.mark.parametrize(
    ("address", "allowed", "base"),
    [
        ("https://backend.example/x", "backend.example", "https://backend.example"),
        ("https://BACKEND.example:8443", "Backend.Example", "https://backend.example:8443"),
        ("https://backend.example:8443", "backend.example:8443", "https://backend.example:8443"),
        ("https://backend.example", "backend.example:443", "https://backend.example"),
        ("https://backend.example:8443", "backend.example:443", None),
        ("https://bücher.example", "xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("https://xn--bcher-kva.example", "bücher.example", "https://xn--bcher-kva.example"),
        ("https://user:word@backend.example", "backend.example", "https://backend.example"),
        ("https://backend.example@other.example", "backend.example", None),
        ("https://backend.example.other.example", "backend.example", None),
        ("https://other.example/backend.example", "backend.example", None),
        ("https://[2606:4700::1]:8443/x", "[2606:4700::1]", "https://[2606:4700::1]:8443"),
        ("ftp://backend.example", "backend.example", None),
        ("https://xn--a/", "xn--a", None),
        ("https://backend.example", "xn--a,backend.example", "https://backend.example"),
    ],
)
def test_target_is_origin_of_an_allowed_host(address: str, allowed: str, base: str | None) -> None:
    settings = WebhookSettings(webhook_allowed_hosts=allowed, backend_api_url="https://configured.example/prefix/")
    expected = Target(base, trusted=False) if base else Target("https://configured.example/prefix", trusted=True)
    assert resolve_target(address, settings) == expected


async def test_missing_backend_url_is_reported(context: Context) -> None:
    async with open_handler(None) as handler:
        with pytest.raises(PermanentError, match="BACKEND_API_URL") as error:
            await handler(COMPLETE, context)
    assert error.value.code == "webhook-address-refused"


def test_secrets_are_masked_in_settings_repr() -> None:
    assert "s3cr3t" not in repr(WebhookSettings(webhook_secret="s3cr3t00" * 5, internal_api_token="s3cr3t" * 6))
