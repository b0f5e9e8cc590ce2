"""One image as server-sent events: which previews are sent, the events' fields, failures before and after the first event, disconnects."""

import asyncio
import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from bus.storage.claim_store import ClaimStore
from contracts.event import Event, EventKind, Progress
from contracts.fault import Fault
from gateway.openai.image_stream import PartialImages
from tests.support.picture_files import png
from tests.unit.gateway.conftest import FakeGateway, OpenFakeGateway

BODY = {"prompt": "fox", "stream": True, "partial_images": 1}


def progress_event(percent: int, preview: str | None = "cHJldmlldw==", tenant: str | None = None) -> Event:
    progress = Progress(current_step=percent, total_steps=100, progress_percent=percent, preview=preview)
    return Event(kind=EventKind.PROGRESS, step="image", job_id="j", at=datetime.now(UTC), message_id="m", tenant=tenant, progress=progress)


def parse_events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize(
    ("count", "percents", "sent"),
    [
        (0, [10, 50, 90], []),
        (1, [10, 49, 50, 90], [50]),
        (2, [20, 40, 60, 70, 80], [40, 70]),
        (3, [10, 30, 55, 60, 90], [30, 55, 90]),
        (3, [80, 90], [80]),
    ],
)
def test_a_preview_is_sent_for_each_part_of_the_steps(count: int, percents: list[int], sent: list[int]) -> None:
    partial_images = PartialImages(count)
    assert [percent for percent in percents if partial_images.take(progress_event(percent, f"{percent}"))] == sent
    assert partial_images.sent == len(sent)


def test_progress_without_a_preview_uses_none_up() -> None:
    partial_images = PartialImages(1)
    assert partial_images.take(progress_event(60, None)) is None
    assert partial_images.take(progress_event(70)) == "cHJldmlldw=="


@pytest.mark.parametrize(("path", "name"), [("generations", "image_generation"), ("edits", "image_edit")])
async def test_events_have_the_fields_of_openai(
    gateway: OpenFakeGateway, claims: ClaimStore, drawn: dict[str, Any], path: str, name: str
) -> None:
    fake_gateway = gateway({}, store=claims)
    events: asyncio.Queue[Event] = fake_gateway.services.subscription.events  # type: ignore[attr-defined]

    async def reply_later() -> None:
        for event in (progress_event(60, "Zm9yZWlnbg==", "other"), progress_event(20), progress_event(60), progress_event(80)):
            events.put_nowait(event)
        while not events.empty() or not fake_gateway.publisher.messages:
            await asyncio.sleep(0.01)
        message = fake_gateway.publisher.messages[0]
        await fake_gateway.publisher._deliver(message.job_id, "image.done.v1", json.dumps(drawn))

    replying = asyncio.create_task(reply_later())
    if path == "edits":
        fields = {"prompt": "fox", "stream": "true", "partial_images": "1", "size": "64x64", "quality": "high"}
        response = await fake_gateway.http.post("/v1/images/edits", data=fields, files={"image": png()})
    else:
        body = BODY | {"size": "64x64", "quality": "high"}
        response = await fake_gateway.http.post("/v1/images/generations", json=body)
    await replying
    partial, completed = parse_events(response.text)
    frame = {"background": "opaque", "quality": "high"}
    assert partial.pop("created_at") <= completed.pop("created_at")
    assert partial == frame | {
        "type": f"{name}.partial_image",
        "b64_json": "cHJldmlldw==",
        "partial_image_index": 0,
        "size": "64x64",
        "output_format": "jpeg",
    }
    assert completed == frame | {
        "type": f"{name}.completed",
        "b64_json": base64.b64encode(png()).decode(),
        "size": "60x40",
        "output_format": "png",
        "seed": 7,
        "usage": None,
    }
    assert [line for line in response.text.splitlines() if line.startswith("event")] == [
        f"event: {name}.partial_image",
        f"event: {name}.completed",
    ]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert fake_gateway.publisher.commands("image")[0]["preview"] is True
    assert fake_gateway.services.file_memory.held_bytes == 0


async def test_failure_before_the_first_event_keeps_its_status(gateway: OpenFakeGateway, claims: ClaimStore) -> None:
    fake_gateway = gateway({"image": Fault(code="size-unsupported", message="too odd", step="image")}, store=claims)
    response = await fake_gateway.http.post("/v1/images/generations", json=BODY)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "size")


async def test_missing_image_of_a_stream_is_an_error(gateway: OpenFakeGateway, claims: ClaimStore, drawn: dict[str, Any]) -> None:
    drawn["images"][0]["sha256"] = "0" * 64
    response = await gateway({"image": drawn}, store=claims).http.post("/v1/images/generations", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "claim_corrupt")


async def test_failure_after_a_preview_is_an_event(gateway: OpenFakeGateway, claims: ClaimStore) -> None:
    fake_gateway = gateway({}, store=claims)
    fake_gateway.services.subscription.events.put_nowait(progress_event(50))  # type: ignore[attr-defined]
    posting = asyncio.create_task(fake_gateway.http.post("/v1/images/generations", json=BODY))
    await wait_for_messages(fake_gateway, 1)
    fault = Fault(code="out-of-memory", message="the device is full", step="image")
    await asyncio.sleep(0.05)
    await fake_gateway.publisher._deliver(fake_gateway.publisher.messages[0].job_id, "fault.v1", fault.model_dump_json())
    response = await posting
    partial, failure = parse_events(response.text)
    assert (response.status_code, partial["type"]) == (200, "image_generation.partial_image")
    assert (failure["error"]["code"], failure["error"]["type"]) == ("out_of_memory", "server_error")


async def test_disconnect_cancels_the_job(gateway: OpenFakeGateway, claims: ClaimStore) -> None:
    fake_gateway = gateway({}, store=claims)
    posting = asyncio.create_task(fake_gateway.http.post("/v1/images/generations", json=BODY))
    await wait_for_messages(fake_gateway, 1)
    posting.cancel()
    await asyncio.wait([posting])
    await wait_for_messages(fake_gateway, 2)
    command, cancel = fake_gateway.publisher.messages
    assert (cancel.job_id, cancel.type) == (command.job_id, "control.v1")
    assert b"cancel" in cancel.body
    assert fake_gateway.services.open_streams == 0


async def wait_for_messages(fake_gateway: FakeGateway, count: int) -> None:
    async with asyncio.timeout(5):
        while len(fake_gateway.publisher.messages) < count:
            await asyncio.sleep(0.01)
