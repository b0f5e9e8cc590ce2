"""A fake backend for the demo: publishes orders in the real backend's form, and receives webhooks with an HTTP server."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from bus.amqp.messages import OutboundMessage
from bus.ids import derived_id
from contracts import broker_names


@dataclass
class FakeBackend:
    """Its URL, and the webhooks that it received, in order. `response_seconds`: the delay of each response.

    `generation_id`: the only one whose webhooks are kept; queues may hold those of a demo that was interrupted. None: all are kept.
    """

    url: str
    response_seconds: float = 0.0
    generation_id: int | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive_webhook(self, request: Request) -> dict[str, bool]:
        body = await request.json()
        await asyncio.sleep(self.response_seconds)
        if self.generation_id not in (None, body["generation_id"]):
            return {"success": True}
        call: dict[str, Any] = {"method": request.method, "path": request.url.path}
        if "progress" in body:
            call["percent"] = body["progress"]["progress_percent"]
        self.calls.append(call | {"body": body})
        if request.url.path.endswith(("/complete", "/failed")):
            self.finished.set()
        return {"success": True}

    @property
    def webhooks(self) -> list[dict[str, Any]]:
        """Method, path and percent of each call."""
        return [{name: value for name, value in call.items() if name != "body"} for call in self.calls]

    @property
    def completed(self) -> bool:
        """Whether the last webhook is `complete`, and the only one that ends the job."""
        ends = [call["path"].rsplit("/", 1)[-1] for call in self.calls if "percent" not in call]
        return ends == ["complete"] and "percent" not in self.calls[-1]


@asynccontextmanager
async def open_fake_backend(response_seconds: float = 0.0, generation_id: int | None = None) -> AsyncIterator[FakeBackend]:
    """Listen on a free port on loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    backend = FakeBackend(f"http://127.0.0.1:{listener.getsockname()[1]}", response_seconds, generation_id)
    app = FastAPI()
    app.add_api_route("/api/webhooks/inference/{call}", backend.receive_webhook, methods=["PATCH", "POST"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield backend
    finally:
        server.should_exit = True
        await serving


def image_order_message(generation_id: int, data: dict[str, Any]) -> OutboundMessage:
    """An order in the real backend's form, published through the default exchange to the queue."""
    order = {
        "task_id": derived_id("demo", generation_id),
        "type": "image_generation",
        "data": {"generation_id": generation_id, "style_id": 1} | data,
    }
    body = json.dumps(order, ensure_ascii=False).encode()
    return OutboundMessage(
        "", broker_names.IMAGE_GENERATION_QUEUE, body, derived_id("order", generation_id), f"order-{generation_id}", "", mandatory=True
    )
