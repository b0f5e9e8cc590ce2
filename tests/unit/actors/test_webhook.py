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

from actors.backend.sending import open_sender
from actors.backend.turns import MemoryTurns
from actors.settings import WebhookSettings
from actors.webhook import webhook
from bus.actor import Context, Handler
from bus.errors import PermanentError, TemporaryError
from contracts.webhook import Webhook
from tests.listening_backend import Backend
from tests.unit.actors.conftest import context_of

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
async def opened(url: str | None, **more: Any) -> AsyncIterator[Handler]:
    settings = WebhookSettings(BACKEND_API_URL=url, internal_api_token="t" * 32, **more)
    async with open_sender(settings) as sender:
        yield partial(webhook, sender=sender, turns=MemoryTurns())


@pytest.fixture
async def tell(backend: Backend) -> AsyncIterator[Handler]:
    async with opened(backend.url, webhook_timeout_seconds=5) as handler:
        yield handler


async def test_progress_is_a_patch_with_whole_numbers(tell: Handler, backend: Backend, context: Context) -> None:
    done = await tell(progress(), context)
    (heard,) = backend.heard
    assert (heard.method, heard.path) == ("PATCH", "/api/webhooks/inference/progress")
    assert heard.body == {"generation_id": 7, "progress": PROGRESS}
    assert (done.delivered, done.status) == (True, 200)


async def test_complete_carries_the_address_and_how_it_was_made(tell: Handler, backend: Backend, context: Context) -> None:
    await tell(COMPLETE, context)
    (heard,) = backend.heard
    assert (heard.method, heard.path) == ("POST", "/api/webhooks/inference/complete")
    assert heard.body == {
        "generation_id": 7,
        "result_url": "https://cdn.example/7.png",
        "metadata": {"seed": 42, "steps": 50, "guidance_scale": 7.5},
    }


async def test_complete_without_metadata_omits_it(tell: Handler, backend: Backend, context: Context) -> None:
    await tell(COMPLETE.model_copy(update={"metadata": {}}), context)
    assert backend.heard[0].body == {"generation_id": 7, "result_url": "https://cdn.example/7.png"}


async def test_several_pictures_are_all_named(tell: Handler, backend: Backend, context: Context) -> None:
    await tell(COMPLETE.model_copy(update={"result_urls": ["https://a", "https://b"]}), context)
    assert backend.heard[0].body["result_urls"] == ["https://a", "https://b"]


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("out-of-memory", "GPU_OOM"),
        ("attempts-exhausted", "GENERATION_FAILED"),
        ("cancelled", "CANCELLED"),
        ("lora-missing", "LORA_MISSING"),
    ],
)
async def test_failed_says_why_and_that_it_is_final(tell: Handler, backend: Backend, context: Context, code: str, word: str) -> None:
    fault = {"code": code, "message": "too large", "step": "image", "attempts": 1}
    await tell(Webhook.model_validate({"kind": "failed", "generation_id": 7, "fault": fault}), context)
    (heard,) = backend.heard
    assert (heard.method, heard.path) == ("POST", "/api/webhooks/inference/failed")
    assert heard.body == {"generation_id": 7, "error_message": "too large", "error_code": word, "retry_count": 3}


async def test_failed_without_a_fault_is_the_backends_own_default(tell: Handler, backend: Backend, context: Context) -> None:
    await tell(Webhook(kind="failed", generation_id=7), context)
    assert backend.heard[0].body["error_code"] == "GENERATION_FAILED"


async def test_every_call_bears_the_token_and_its_source(tell: Handler, backend: Backend, context: Context) -> None:
    await tell(COMPLETE, context)
    headers = backend.heard[0].headers
    assert headers["authorization"] == "Bearer " + "t" * 32
    assert headers["x-request-source"] == "inference-server"
    assert headers["content-type"] == "application/json"


async def test_the_signature_is_one_that_the_standards_own_library_verifies(backend: Backend, context: Context) -> None:
    async with opened(backend.url, webhook_secret=f"{SECRET} whsec_b3RoZXI=") as tell:
        await tell(COMPLETE, context)
    heard = backend.heard[0]
    assert StandardWebhook(SECRET).verify(heard.raw, heard.headers) == heard.body
    assert len(heard.headers["webhook-signature"].split(" ")) == 2


async def test_the_webhook_id_stays_over_retries(tell: Handler, backend: Backend, context: Context) -> None:
    backend.answers = [503]
    with pytest.raises(TemporaryError):
        await tell(COMPLETE, context)
    await tell(COMPLETE, context)
    await tell(progress(), context_of("another"))
    first, second = backend.heard
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert "." not in first.headers["webhook-id"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
async def test_a_refusal_is_permanent(tell: Handler, backend: Backend, context: Context, status: int) -> None:
    backend.answers = [status]
    with pytest.raises(PermanentError, match=f"{status}.*Generation not found") as error:
        await tell(COMPLETE, context)
    assert error.value.code == "webhook-rejected"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_trouble_is_temporary(tell: Handler, backend: Backend, context: Context, status: int) -> None:
    backend.answers = [status]
    with pytest.raises(TemporaryError) as error:
        await tell(COMPLETE, context)
    assert (error.value.delay, error.value.code) == (None, "webhook-unanswered")


async def test_retry_after_in_seconds_is_respected(tell: Handler, backend: Backend, context: Context) -> None:
    backend.answers = [(429, {"Retry-After": "17"})]
    with pytest.raises(TemporaryError) as error:
        await tell(COMPLETE, context)
    assert error.value.delay == 17


async def test_retry_after_as_a_date_is_respected(tell: Handler, backend: Backend, context: Context) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    backend.answers = [(503, {"Retry-After": later})]
    with pytest.raises(TemporaryError) as error:
        await tell(COMPLETE, context)
    assert error.value.delay == pytest.approx(90, abs=5)


@pytest.mark.parametrize("said", ["soon", "-3", "9" * 400, ""])
async def test_an_odd_retry_after_does_no_harm(tell: Handler, backend: Backend, context: Context, said: str) -> None:
    backend.answers = [(429, {"Retry-After": said})]
    with pytest.raises(TemporaryError) as error:
        await tell(COMPLETE, context)
    assert error.value.delay is None or 0 <= error.value.delay < 10**9


async def test_a_redirect_is_a_refusal_and_not_followed(tell: Handler, backend: Backend, context: Context) -> None:
    backend.answers = [(307, {"Location": f"{backend.url}/elsewhere"})]
    with pytest.raises(PermanentError) as error:
        await tell(COMPLETE, context)
    assert error.value.code == "webhook-rejected"
    assert len(backend.heard) == 1


async def test_a_silent_backend_is_temporary(backend: Backend, context: Context) -> None:
    backend.hold = asyncio.Event()
    async with opened(backend.url, webhook_timeout_seconds=0.2) as tell:
        with pytest.raises(TemporaryError) as error:
            await tell(COMPLETE, context)
    assert error.value.code == "webhook-unanswered"


async def test_a_backend_that_is_not_there_is_temporary(context: Context, unused_tcp_port: int) -> None:
    async with opened(f"http://127.0.0.1:{unused_tcp_port}") as tell:
        for command in (COMPLETE, FAILED.model_copy(update={"generation_id": 8})):
            with pytest.raises(TemporaryError):
                await tell(command, context)


@pytest.mark.parametrize("answer", [503, 404, None, (302, {"Location": "/"})])
async def test_a_failing_progress_is_neither_tried_again_nor_buried(
    tell: Handler, backend: Backend, context: Context, answer: int | tuple[int, dict[str, str]] | None
) -> None:
    backend.answers = [answer]
    done = await tell(progress(), context)
    assert not done.delivered
    assert done.reason


async def test_progress_after_the_end_is_dropped(tell: Handler, backend: Backend, context: Context) -> None:
    await tell(COMPLETE, context)
    done = await tell(progress(90), context_of("late"))
    assert (done.delivered, backend.paths) == (False, ["complete"])


async def test_progress_only_rises(tell: Handler, backend: Backend) -> None:
    told = [(await tell(progress(percent), context_of(f"m{index}"))).delivered for index, percent in enumerate([25, 0, 25, 50])]
    assert told == [True, False, False, True]
    assert [heard.body["progress"]["progress_percent"] for heard in backend.heard] == [25, 50]


async def test_complete_waits_for_a_progress_under_way(tell: Handler, backend: Backend) -> None:
    backend.hold = asyncio.Event()
    first = asyncio.create_task(tell(progress(), context_of("m1")))
    await backend.arrived.acquire()
    last = asyncio.create_task(tell(COMPLETE, context_of("m2")))
    await asyncio.sleep(0.05)
    assert backend.paths == ["progress"]
    backend.hold.set()
    await asyncio.gather(first, last)
    assert backend.paths == ["progress", "complete"]


async def test_a_complete_delivered_again_is_not_sent_again(tell: Handler, backend: Backend, context: Context) -> None:
    await tell(COMPLETE, context)
    again = await tell(COMPLETE, context)
    assert (again.delivered, len(backend.heard)) == (True, 1)


async def test_failed_is_sent_once(tell: Handler, backend: Backend) -> None:
    await tell(FAILED, context_of("m1"))
    await tell(FAILED, context_of("m1"))
    await tell(FAILED, context_of("m2"))
    assert backend.paths == ["failed"]


async def test_failed_is_never_sent_after_complete(tell: Handler, backend: Backend) -> None:
    await tell(COMPLETE, context_of("m1"))
    done = await tell(FAILED, context_of("m2"))
    assert (done.delivered, backend.paths) == (False, ["complete"])


async def test_a_failed_that_the_backend_did_not_take_is_sent_again(tell: Handler, backend: Backend, context: Context) -> None:
    backend.answers = [503]
    with pytest.raises(TemporaryError):
        await tell(FAILED, context)
    done = await tell(FAILED, context)
    assert (done.delivered, backend.paths) == (True, ["failed", "failed"])


@pytest.mark.parametrize("answer", [None, 504])
async def test_a_failed_with_an_unknown_answer_is_never_sent_again(
    tell: Handler, backend: Backend, context: Context, answer: int | None
) -> None:
    """The backend refunds at every `failed` it hears: rather none than two."""
    backend.answers = [answer]
    first = await tell(FAILED, context)
    second = await tell(FAILED, context_of("replayed"))
    assert (first.delivered, second.delivered, backend.paths) == (False, False, ["failed"])
    assert "refund" in (first.reason or "")


async def test_a_replayed_order_may_still_end_well(tell: Handler, backend: Backend) -> None:
    await tell(FAILED, context_of("m1"))
    assert (await tell(COMPLETE, context_of("m2"))).delivered
    assert backend.paths == ["failed", "complete"]


@pytest.mark.parametrize("kind", ["progress", "complete"])
async def test_a_command_that_lacks_what_it_tells_is_not_sent(tell: Handler, backend: Backend, context: Context, kind: str) -> None:
    command = Webhook.model_validate({"kind": kind, "generation_id": 7})
    if kind == "progress":
        assert not (await tell(command, context)).delivered
    else:
        with pytest.raises(PermanentError) as error:
            await tell(command, context)
        assert error.value.code == "webhook-incomplete"
    assert backend.heard == []


def at(address: str) -> Webhook:
    return COMPLETE.model_copy(update={"base_url": address})


async def test_an_address_in_a_message_does_not_count(tell: Handler, backend: Backend, context: Context) -> None:
    await tell(at("https://attacker.example/steal"), context)
    assert backend.paths == ["complete"]


@pytest.mark.parametrize("address", ["http://169.254.169.254", "http://10.0.0.1:8000", "https://[::ffff:127.0.0.1]", "https://[fd00::1]"])
async def test_a_private_address_in_a_message_is_refused(context: Context, address: str) -> None:
    async with opened("https://backend.example") as tell:
        with pytest.raises(PermanentError) as error:
            await tell(at(address), context)
    assert error.value.code == "webhook-address-refused"


async def test_an_allowed_host_with_a_private_address_is_refused(backend: Backend, context: Context) -> None:
    async with opened(None, webhook_allowed_hosts="localhost,127.0.0.1", allow_plain_http=True) as tell:
        for address in (backend.url, backend.url.replace("127.0.0.1", "localhost")):
            with pytest.raises(PermanentError) as error:
                await tell(at(address), context)
            assert error.value.code == "webhook-address-refused"
    assert backend.heard == []


async def test_an_allowed_host_must_speak_https(backend: Backend, context: Context) -> None:
    async with opened(None, webhook_allowed_hosts="127.0.0.1", allow_private_addresses=True) as tell:
        with pytest.raises(PermanentError, match="https") as error:
            await tell(at(backend.url), context)
    assert error.value.code == "webhook-address-refused"


async def test_with_both_allowed_the_address_in_the_message_is_called(backend: Backend, context: Context) -> None:
    async with opened(
        "https://backend.example", webhook_allowed_hosts="localhost", allow_plain_http=True, allow_private_addresses=True
    ) as tell:
        named = backend.url.replace("127.0.0.1", "localhost") + "/api/webhooks/generation/7/status"
        await tell(at(named), context)
    (heard,) = backend.heard
    assert heard.path == "/api/webhooks/inference/complete"
    assert heard.headers["host"].startswith("localhost:")


async def test_with_nobody_to_call_the_fault_says_so(context: Context) -> None:
    async with opened(None) as tell:
        with pytest.raises(PermanentError, match="BACKEND_API_URL") as error:
            await tell(COMPLETE, context)
    assert error.value.code == "webhook-address-refused"


def test_no_secret_shows_in_the_settings() -> None:
    assert "s3cr3t" not in repr(WebhookSettings(webhook_secret="s3cr3t", internal_api_token="s3cr3t"))
