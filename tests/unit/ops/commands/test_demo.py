"""What a demo that is interrupted leaves behind: no order that runs, and no webhook that the next demo counts."""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from bus.amqp.messages import OutboundMessage
from bus.errors import PublishError
from contracts.broker_names import CONTROL_EXCHANGE
from contracts.control import Control
from ops.commands import demo
from ops.commands.demo import DemoStack, publish_and_follow
from ops.commands.demo_backend import FakeBackend


class Operator:
    """Its `published` messages; with `fails` the broker is gone."""

    def __init__(self, *, fails: bool) -> None:
        self.fails, self.published = fails, list[OutboundMessage]()

    async def publish(self, message: OutboundMessage) -> None:
        self.published.append(message)
        if self.fails:
            raise PublishError("the broker is gone")


@pytest.mark.parametrize("fails", [False, True])
async def test_order_of_an_interrupted_demo_is_cancelled(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Otherwise its workers would wait for it until the end of their grace period, and the next demo would receive its webhooks."""
    ordered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def subscribe(*_: Any) -> AsyncIterator[Any]:
        yield asyncio.Queue()

    async def publish_order(*_: Any) -> None:
        ordered.set_result(None)

    monkeypatch.setattr(demo, "subscribe_events", subscribe)
    monkeypatch.setattr(demo, "publish_order", publish_order)
    operator, other = Operator(fails=fails), _Anything()
    stack = DemoStack(4711, other, other, operator, ())  # type: ignore[arg-type]
    following = asyncio.create_task(publish_and_follow(Namespace(), Path(), stack, other, other))  # type: ignore[arg-type]
    await ordered
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following

    assert [(message.exchange, Control.model_validate_json(message.body).cancel) for message in operator.published] == [
        (CONTROL_EXCHANGE, "generation-4711")
    ]


async def test_backend_of_a_demo_keeps_no_webhook_of_an_earlier_demo() -> None:
    backend = FakeBackend("http://127.0.0.1:1", generation_id=4711)
    for generation_id in (4710, 4711):
        assert not backend.finished.is_set()
        assert await backend.receive_webhook(webhook("complete", generation_id)) == {"success": True}

    assert (backend.finished.is_set(), backend.completed, len(backend.webhooks)) == (True, True, 1)


def webhook(call: str, generation_id: int) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"generation_id": %d}' % generation_id}

    return Request({"type": "http", "method": "POST", "path": f"/api/webhooks/inference/{call}", "headers": []}, receive)


class _Anything:
    """A display, a clock, a backend: all that they are asked is ignored."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None
