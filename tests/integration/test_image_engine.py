"""The image actor on the real engine and a tiny checkpoint: its process, its pictures, its LoRAs, its faults."""

import asyncio
import base64
import io
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image as Pillow
from PIL import ImageChops

from actors.engines.executor import Executor, open_executor
from actors.engines.lora_files import LoraFiles
from actors.engines.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from actors.image import ENGINE, image
from bus.actor import Context, Handler
from bus.errors import PermanentError
from bus.store_settings import StoreSettings
from bus.stores import open_claims
from contracts.event import Progress
from contracts.image import Image, ImageDone, Lora
from ops.models import make_tiny

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.models, pytest.mark.timeout(120)]


@dataclass
class Studio:
    """An image actor at work, its store, and what it reported."""

    handle: Handler
    executor: Executor
    folder: Path
    loras: dict[str, Path]
    files: LoraFiles
    told: list[Progress] = field(default_factory=list)

    async def draw(self, command: Image, message_id: str = "m-1", tenant: str = "") -> ImageDone:
        self.told = []

        async def report(progress: Progress) -> None:
            self.told.append(progress)

        done = await self.handle(command, Context("job-1", message_id, 1, tenant, None, report))
        assert isinstance(done, ImageDone)
        return done

    def picture(self, done: ImageDone, index: int = 0) -> Pillow.Image:
        return Pillow.open(done.images[index].uri.removeprefix("file://"))

    def apart(self, one: ImageDone, other: ImageDone) -> int:
        """The greatest difference of any value of any pixel."""
        return max(high for _, high in ImageChops.difference(self.picture(one), self.picture(other)).getextrema())

    def lora(self, name: str, **how: Any) -> Lora:
        return Lora(uri=self.loras[f"tiny-lora-{name}"].as_uri(), **how)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def studio(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    made = make_tiny(folder / "models")
    settings = ImageSettings(model=str(made["tiny-sd"]), local_cache=folder / "cache", preview_seconds=0.001)
    store = StoreSettings(store_url=(folder / "store").as_uri(), asset_roots=(folder,))
    async with open_claims(store) as claims, open_studio(settings) as executor:
        files = LoraFiles(claims, settings)
        yield Studio(partial(image, claims=claims, executor=executor, loras=files), executor, folder, made, files)


@asynccontextmanager
async def open_studio(settings: ImageSettings) -> AsyncIterator[Executor]:
    async with open_executor(EngineSpec(ENGINE, settings), ExecutorSettings(), admit=20, capacity=10) as executor:
        yield executor


SMALL = Image(prompt="a cat 고양이", width=64, height=64, steps=8, seed=7)


def variant(**changes: Any) -> Image:
    return SMALL.model_copy(update=changes)


async def test_an_order_becomes_pictures_of_its_size_with_their_making_written_in(studio: Studio) -> None:
    done = await studio.draw(variant(count=2, width=128, seed=41))
    assert done.metadata.model_dump() == {"seed": 41, "steps": 8, "guidance_scale": 7.5}
    assert done.seeds == [41, 42]
    second = studio.picture(done, 1)
    assert second.size == (128, 64)
    assert done.images[1].width == 128
    texts = second.text  # type: ignore[attr-defined]
    assert texts["seed"] == "42"
    assert texts["job"] == "job-1"
    assert len(texts["model_sha256"]) == 64
    assert done.made_with["diffusers_version"] == texts["diffusers_version"]


async def test_progress_is_told_at_the_first_step_past_each_milestone(studio: Studio) -> None:
    await studio.draw(variant(steps=50))
    assert [(said.current_step, said.progress_percent) for said in studio.told] == [(0, 0), (13, 26), (25, 50), (38, 76), (45, 90)]


async def test_a_message_that_comes_twice_without_a_seed_gets_the_same_picture_twice(studio: Studio) -> None:
    first, second, other = [await studio.draw(variant(seed=None), message_id=name) for name in ("m-1", "m-1", "m-2")]
    assert first.images[0].sha256 == second.images[0].sha256 != other.images[0].sha256


async def test_previews_come_with_progress_when_asked_for(studio: Studio) -> None:
    await studio.draw(variant(steps=30, preview=True))
    previews = [base64.b64decode(said.preview) for said in studio.told if said.preview]
    assert previews
    assert Pillow.open(io.BytesIO(previews[0])).format == "JPEG"
    assert max(map(len, previews)) < 8192


async def test_orders_that_come_together_share_their_steps(studio: Studio) -> None:
    orders = [variant(seed=number, steps=10 + number, lora=studio.lora("abc"[number % 3])) for number in range(5)]
    done = await asyncio.gather(*(studio.draw(order) for order in orders))
    assert max(one.largest_batch for one in done) == 5
    assert len({one.images[0].sha256 for one in done}) == 5


async def test_a_lora_is_fetched_once_and_changes_the_picture(studio: Studio) -> None:
    plain = await studio.draw(SMALL)
    before = studio.files.fetches
    first, second = await asyncio.gather(*(studio.draw(variant(lora=studio.lora("a", scale=0.9))) for _ in range(2)))
    assert studio.files.fetches - before <= 1
    assert studio.apart(first, second) <= 1
    assert studio.apart(first, plain) > 8
    assert first.made_with["lora_scale"] == "0.9"


async def test_a_missing_lora_is_fatal_only_when_it_is_required(studio: Studio) -> None:
    lost = (studio.folder / "lost.safetensors").as_uri()
    with pytest.raises(PermanentError) as caught:
        await studio.draw(variant(lora=Lora(uri=lost)))
    assert caught.value.code == "lora-missing"
    without = await studio.draw(variant(lora=Lora(uri=lost, required=False)))
    assert without.lora_missing
    assert studio.apart(without, await studio.draw(SMALL)) <= 1


async def test_a_lora_that_does_not_fit_is_named_and_hurts_no_other(studio: Studio) -> None:
    """Its header is sound; only the model knows that the shapes are those of another."""
    import torch
    from safetensors.torch import save_file

    strange = studio.folder / "strange.safetensors"
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{name}.lora_A.weight": torch.ones(4, 320), f"{name}.lora_B.weight": torch.ones(320, 4)}, strange)
    bad, good = await asyncio.gather(
        studio.draw(variant(lora=Lora(uri=strange.as_uri()))), studio.draw(variant(lora=studio.lora("b"))), return_exceptions=True
    )
    assert isinstance(bad, PermanentError)
    assert bad.code == "lora-invalid"
    assert "strange.safetensors" in str(bad)
    assert isinstance(good, ImageDone)


async def test_a_cancelled_order_frees_its_place_for_the_next(studio: Studio) -> None:
    endless = asyncio.create_task(studio.draw(variant(steps=500, count=4, width=256, height=256)))
    while not studio.told:
        await asyncio.sleep(0.01)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert (await studio.draw(SMALL)).images
    assert studio.executor.in_hand == 0
    assert not studio.executor.stats.deaths
    assert list(studio.executor.spool.iterdir()) == []


async def test_an_unknown_model_is_refused_by_name(studio: Studio) -> None:
    with pytest.raises(PermanentError) as caught:
        await studio.draw(variant(model="sdxl"))
    assert caught.value.code == "model-unknown"


async def test_the_same_picture_comes_out_of_a_fresh_process_after_a_kill(studio: Studio) -> None:
    before = await studio.draw(SMALL)
    order = asyncio.create_task(studio.draw(variant(steps=60, width=256, height=256)))
    while not studio.told:
        await asyncio.sleep(0.01)
    process = studio.executor.process_id
    assert process
    os.kill(process, signal.SIGKILL)
    assert (await order).images
    assert studio.executor.process_id != process
    assert (await studio.draw(SMALL)).images[0].sha256 == before.images[0].sha256
