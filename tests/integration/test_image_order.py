"""One image order from the foreign queue to the backend's webhooks, through every actor but the model.

The broker, the database, the store, the processes and the HTTP receiver are real.
"""

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import pytest
from PIL import Image as Pillow

from bus.settings import BusSettings
from contracts import channels
from contracts.wire import Header
from tests.integration.conftest import Customer, soon
from tests.listening_backend import Backend, open_backend

STEPS = ("image_generation", "image", "watermark", "upload", "webhook", "ledger")
NUMBERS = count(int.from_bytes(os.urandom(5)))


def form_c(generation_id: int, **data: Any) -> dict[str, Any]:
    order = {
        "generation_id": generation_id,
        "style_id": 1,
        "lora_path": None,
        "prompt": "harbour",
        "aspect_ratio": "1:1",
        "seed": 42,
        "signature_path": "",
        "signature_config": {"position": "bottom-right", "size": "medium", "opacity": 0.7},
        "prompt_tags": ["harbour"],
    }
    return {"task_id": "t", "type": "image_generation", "data": order | data, "webhook_url": "https://x.example/ignored"}


class Yard:
    """The actors as processes of their own, and what the outside world sees of their work."""

    def __init__(self, environment: dict[str, str], store: Path, backend: Backend, customer: Customer) -> None:
        self.environment, self.store, self.backend, self.customer = environment, store, backend, customer

    @asynccontextmanager
    async def process(self, *steps: str, point: str = "never", marker: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
        words = [sys.executable, "-m", "tests.dying", point, str(marker or "-"), *steps]
        with TemporaryFile() as said:
            process = await asyncio.create_subprocess_exec(*words, env=self.environment, stderr=said)
            try:
                await ready(process, said)
                yield process
            finally:
                if process.returncode is None:
                    process.terminate()
                await process.wait()

    async def order(self, body: Any) -> None:
        await self.customer.send(channels.IMAGE_GENERATION, body, exchange="")

    async def told(self, *last: str, seconds: float = 30) -> list[str]:
        """The backend's calls by name, once the last ones are these; a moment later, so that one too many would be seen."""

        async def heard() -> bool:
            return sorted(call for call in self.backend.paths if call != "progress") == sorted(last)

        await soon(heard, seconds)
        await asyncio.sleep(0.3)
        return self.backend.paths

    def pictures(self) -> list[Path]:
        return sorted(self.store.rglob("generations/**/*.png"))


async def ready(process: asyncio.subprocess.Process, said: IO[bytes]) -> None:
    """Wait until the process takes deliveries; fail with its own words when it ends instead."""

    def words() -> bytes:
        return os.pread(said.fileno(), 1 << 20, 0)

    async with asyncio.timeout(40):
        while b"actors.ready" not in words():
            assert process.returncode is None, f"the process ended: {words().decode()[-3000:]}"
            await asyncio.sleep(0.05)


@pytest.fixture
async def yard(bus_settings: BusSettings, customer: Customer, store_folder: Path) -> AsyncIterator[Yard]:
    async with open_backend() as backend:
        urls = {"AMQP_URL": bus_settings.amqp_url.get_secret_value(), "DATABASE_URL": bus_settings.database_url.get_secret_value()}  # type: ignore[union-attr]
        delays = {"RETRY_DELAYS_SECONDS": "0.1,0.2", "LONG_DELAYS_SECONDS": "0.5", "GRACE_SECONDS": "3"}
        told = {"STORE_URL": store_folder.as_uri(), "BACKEND_API_URL": backend.url, "INTERNAL_API_TOKEN": "t" * 32}
        yield Yard(dict(os.environ) | urls | delays | told, store_folder, backend, customer)


async def test_an_order_becomes_a_signed_picture_and_the_backend_hears_of_it(yard: Yard) -> None:
    """Progress in order, then `complete` once with a link, seed and tags; the picture lies under the order's name."""
    number = next(NUMBERS)
    async with yard.process(*STEPS):
        await yard.order(form_c(number, artist_name="김작가"))
        calls = await yard.told("complete")
    percents = [heard.body["progress"]["progress_percent"] for heard in yard.backend.heard if "progress" in heard.body]
    assert percents == sorted(set(percents))
    assert calls[-1] == "complete"
    told = yard.backend.heard[-1].body
    assert (told["generation_id"], told["metadata"]["seed"], told["metadata"]["prompt_tags"]) == (number, 42, ["harbour"])
    assert yard.backend.heard[-1].headers["authorization"] == "Bearer " + "t" * 32
    (picture,) = yard.pictures()
    assert picture.name == f"gen-{number}.png"
    with Pillow.open(io.BytesIO(picture.read_bytes())) as opened:
        assert (opened.size, opened.mode) == ((512, 512), "RGB")
        assert len(opened.getcolors(1 << 20)) > 1, "the signature is drawn"
        assert opened.text["artist"] == "김작가"  # type: ignore[attr-defined]


async def test_the_same_order_twice_is_done_once(yard: Yard) -> None:
    number = next(NUMBERS)
    async with yard.process(*STEPS):
        for _ in range(2):
            await yard.order(form_c(number))
        await yard.told("complete")
        await asyncio.sleep(1)
    assert yard.backend.paths.count("complete") == 1
    assert len(yard.pictures()) == 1


async def test_what_fails_once_works_the_second_time(yard: Yard) -> None:
    async with yard.process(*STEPS):
        await yard.order(form_c(next(NUMBERS), prompt="shaky"))
        assert "failed" not in await yard.told("complete")


@pytest.mark.parametrize(
    ("data", "queue", "code"),
    [
        ({"prompt": "fails"}, "image", "lora-missing"),
        ({"count": 5}, "image_generation", "invalid-count"),
        ({"aspect_ratio": "3:1"}, "image_generation", "unknown-size"),
        ({"signature_path": "http://127.0.0.1:9/signature.png"}, "watermark", "asset-refused"),
    ],
)
async def test_a_bad_order_is_buried_and_told_once_and_the_next_is_served(yard: Yard, data: dict[str, Any], queue: str, code: str) -> None:
    """The dead letter and the `failed` webhook name the cause; the order after it is not disturbed."""
    bad, good = next(NUMBERS), next(NUMBERS)
    async with yard.process(*STEPS):
        await yard.order(form_c(bad, **data))
        await yard.order(form_c(good))
        await yard.told("complete", "failed")
        letter = await yard.customer.letter_in(channels.dead_queue(queue))
    (failed,) = [heard.body for heard in yard.backend.heard if heard.path.endswith("failed")]
    assert (failed["generation_id"], failed["error_code"], failed["retry_count"]) == (bad, code.upper().replace("-", "_"), 3)
    assert letter.headers[Header.FAULT_CODE] == code


async def test_an_unreadable_order_is_buried_with_its_cause(yard: Yard) -> None:
    """No generation id can be read, so nobody can be told; the letter is kept as it came."""
    async with yard.process(*STEPS):
        await yard.order(b"{nope")
        letter = await yard.customer.letter_in(channels.dead_queue("image_generation"))
    assert (letter.body, letter.headers[Header.FAULT_CODE]) == (b"{nope", "invalid-json")
    assert yard.backend.paths == []


@pytest.mark.parametrize("step", ["image", "watermark", "upload"])
@pytest.mark.parametrize("point", ["before-handle", "before-remember", "before-publish", "before-ack"])
async def test_a_process_killed_at_any_point_loses_nothing_and_doubles_nothing(yard: Yard, tmp_path: Path, step: str, point: str) -> None:
    """kill -9 of the step's process; the next one finishes the order: one picture, one `complete`."""
    marker = tmp_path / "died"
    others = [other for other in STEPS if other != step]
    async with yard.process(*others), yard.process(step, point=point, marker=marker) as victim:
        await yard.order(form_c(next(NUMBERS)))
        assert await asyncio.wait_for(victim.wait(), 30) == -9
        async with yard.process(step):
            await yard.told("complete")
    assert len(yard.pictures()) == 1


@pytest.mark.parametrize("point", ["before-handle", "before-publish", "before-ack"])
async def test_a_webhook_process_killed_after_its_call_does_not_call_again(yard: Yard, tmp_path: Path, point: str) -> None:
    """Between handle and ack the inbox knows: the backend hears `complete` once."""
    async with yard.process(*(step for step in STEPS if step != "webhook")):
        await yard.order(form_c(next(NUMBERS)))
        async with yard.process("webhook", point=point, marker=tmp_path / "died") as victim:
            assert await asyncio.wait_for(victim.wait(), 30) == -9
        async with yard.process("webhook"):
            await yard.told("complete")
