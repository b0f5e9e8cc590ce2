"""A backend for the demo: publishes an order as the real one does, and listens for its webhooks with a real HTTP server."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from bus.ids import derived_id
from bus.letters import Letter
from contracts import channels


@dataclass
class Backend:
    """Where it listens, and what it was told, in the order in which it was told."""

    url: str
    answer_seconds: float = 0.0
    told: list[dict[str, Any]] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: Request) -> dict[str, bool]:
        body = await request.json()
        await asyncio.sleep(self.answer_seconds)
        call: dict[str, Any] = {"method": request.method, "path": request.url.path}
        if "progress" in body:
            call["percent"] = body["progress"]["progress_percent"]
        self.told.append(call | {"body": body})
        if request.url.path.endswith(("/complete", "/failed")):
            self.finished.set()
        return {"success": True}

    @property
    def webhooks(self) -> list[dict[str, Any]]:
        """Method, path and percent of each call."""
        return [{name: value for name, value in call.items() if name != "body"} for call in self.told]

    @property
    def completed(self) -> bool:
        """The last word was `complete`, said once."""
        ends = [call["path"].rsplit("/", 1)[-1] for call in self.told if "percent" not in call]
        return ends == ["complete"] and "percent" not in self.told[-1]


@asynccontextmanager
async def open_backend(answer_seconds: float = 0.0) -> AsyncIterator[Backend]:
    """Listen on a free port of the loopback. `answer_seconds`: as far away as that."""
    listener = socket.create_server(("127.0.0.1", 0))
    backend = Backend(f"http://127.0.0.1:{listener.getsockname()[1]}", answer_seconds)
    app = FastAPI()
    app.add_api_route("/api/webhooks/inference/{call}", backend.take, methods=["PATCH", "POST"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield backend
    finally:
        server.should_exit = True
        await serving


def order_letter(generation_id: int, data: dict[str, Any]) -> Letter:
    """An order in the form that the real backend publishes: to the default exchange, keyed by the queue's name."""

    order = {
        "task_id": derived_id("demo", generation_id),
        "type": "image_generation",
        "data": {"generation_id": generation_id, "style_id": 1} | data,
    }
    body = json.dumps(order, ensure_ascii=False).encode()
    return Letter("", channels.IMAGE_GENERATION, body, derived_id("order", generation_id), f"order-{generation_id}", "", must_route=True)
