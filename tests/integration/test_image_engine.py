"""The image actor with the real engine in its process and a tiny checkpoint: images, LoRAs, progress, cancels, crashes."""

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

from actors.engines.diffusion.input_pictures import PictureReader
from actors.engines.diffusion.lora.file_cache import LoraFileCache
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from actors.image import ENGINE_FACTORY, OrderSources, image
from bus.actor import Context, Handler
from bus.errors import PermanentError
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts.event import Progress
from contracts.image import Image, ImageDone, Lora
from ops.local.tiny_models import make_tiny_models

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.models, pytest.mark.timeout(120)]


@dataclass
class ImageEngineRig:
    """The image actor's handler with its executor, and the progress of the last order."""

    handle: Handler
    executor: Executor
    folder: Path
    loras: dict[str, Path]
    files: LoraFileCache
    progress_events: list[Progress] = field(default_factory=list)

    async def draw(self, command: Image, message_id: str = "m-1", tenant: str = "") -> ImageDone:
        self.progress_events = []

        async def report(progress: Progress) -> None:
            self.progress_events.append(progress)

        done = await self.handle(command, Context("job-1", message_id, 1, tenant, None, report))
        assert isinstance(done, ImageDone)
        return done

    def image(self, done: ImageDone, index: int = 0) -> Pillow.Image:
        return Pillow.open(done.images[index].uri.removeprefix("file://"))

    def max_pixel_difference(self, first: ImageDone, second: ImageDone) -> int:
        """The largest difference of any value of any pixel."""
        return max(high for _, high in ImageChops.difference(self.image(first), self.image(second)).getextrema())

    def lora(self, name: str, **options: Any) -> Lora:
        return Lora(uri=self.loras[f"tiny-lora-{name}"].as_uri(), **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def image_engine_rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ImageEngineRig]:
    folder = tmp_path_factory.mktemp("image-engine")
    models = make_tiny_models(folder / "models")
    settings = ImageSettings(model=str(models["tiny-sd"]), local_cache=folder / "cache", preview_seconds=0.001)
    store = StoreSettings(store_url=(folder / "store").as_uri(), asset_roots=(folder,))
    async with open_claim_store(store) as claims, open_image_executor(settings) as executor:
        files = LoraFileCache(claims, settings)
        sources = OrderSources(files, PictureReader(claims, settings))
        handler = partial(image, claims=claims, executor=executor, sources=sources, signature_max_bytes=1 << 20)
        yield ImageEngineRig(handler, executor, folder, models, files)


@asynccontextmanager
async def open_image_executor(settings: ImageSettings) -> AsyncIterator[Executor]:
    async with open_executor(EngineSpec(ENGINE_FACTORY, settings), ExecutorSettings(), max_in_flight=20, capacity=10) as executor:
        yield executor


SMALL = Image(prompt="a cat 고양이", width=64, height=64, steps=8, seed=7)


def variant(**changes: Any) -> Image:
    return SMALL.model_copy(update=changes)


async def test_order_yields_images_of_requested_size_with_metadata(image_engine_rig: ImageEngineRig) -> None:
    done = await image_engine_rig.draw(variant(count=2, width=128, seed=41))
    assert done.metadata.model_dump() == {"seed": 41, "steps": 8, "guidance_scale": 7.5}
    assert done.seeds == [41, 42]
    second = image_engine_rig.image(done, 1)
    assert second.size == (128, 64)
    assert done.images[1].width == 128
    metadata = second.text  # type: ignore[attr-defined]
    assert metadata["seed"] == "42"
    assert metadata["job"] == "job-1"
    assert len(metadata["model_sha256"]) == 64
    assert done.made_with["diffusers_version"] == metadata["diffusers_version"]


async def test_progress_is_reported_at_each_milestone(image_engine_rig: ImageEngineRig) -> None:
    await image_engine_rig.draw(variant(steps=50))
    assert [(event.current_step, event.progress_percent) for event in image_engine_rig.progress_events] == [
        (0, 0),
        (13, 26),
        (25, 50),
        (38, 76),
        (45, 90),
    ]


async def test_redelivered_order_without_seed_yields_same_image(image_engine_rig: ImageEngineRig) -> None:
    first, second, other = [await image_engine_rig.draw(variant(seed=None), message_id=name) for name in ("m-1", "m-1", "m-2")]
    assert first.images[0].sha256 == second.images[0].sha256 != other.images[0].sha256


async def test_requested_previews_are_small_jpegs_in_progress_events(image_engine_rig: ImageEngineRig) -> None:
    await image_engine_rig.draw(variant(steps=30, preview=True))
    previews = [base64.b64decode(event.preview) for event in image_engine_rig.progress_events if event.preview]
    assert previews
    assert Pillow.open(io.BytesIO(previews[0])).format == "JPEG"
    assert max(map(len, previews)) < 8192


async def test_concurrent_orders_share_denoising_steps(image_engine_rig: ImageEngineRig) -> None:
    orders = [variant(seed=number, steps=10 + number, lora=image_engine_rig.lora("abc"[number % 3])) for number in range(5)]
    results = await asyncio.gather(*(image_engine_rig.draw(order) for order in orders))
    assert max(result.largest_batch for result in results) == 5
    assert len({result.images[0].sha256 for result in results}) == 5


async def test_lora_is_fetched_once_and_changes_image(image_engine_rig: ImageEngineRig) -> None:
    without_lora = await image_engine_rig.draw(SMALL)
    before = image_engine_rig.files.fetch_count
    first, second = await asyncio.gather(*(image_engine_rig.draw(variant(lora=image_engine_rig.lora("a", scale=0.9))) for _ in range(2)))
    assert image_engine_rig.files.fetch_count - before <= 1
    assert image_engine_rig.max_pixel_difference(first, second) <= 1
    assert image_engine_rig.max_pixel_difference(first, without_lora) > 8
    assert first.made_with["lora_scale"] == "0.9"
    assert (first.lora_alpha_from, first.made_with["lora_scaling"], without_lora.lora_alpha_from) == ("assumed", "1", None)
    picture = image_engine_rig.image(first)
    assert picture.text["lora_alpha_from"] == "assumed", "a picture says that its LoRA's strength is a guess"  # type: ignore[attr-defined]


async def test_sha256_of_another_tenants_lora_gives_nothing(image_engine_rig: ImageEngineRig) -> None:
    """Pictures publish the sha256 of their LoRA. Who knows it, but not the address, does not get the weights."""
    done = await image_engine_rig.draw(variant(lora=image_engine_rig.lora("a")), tenant="shop")
    stolen = Lora(uri=(image_engine_rig.folder / "absent.safetensors").as_uri(), sha256=done.made_with["lora_sha256"])
    with pytest.raises(PermanentError) as raised:
        await image_engine_rig.draw(variant(lora=stolen), tenant="office")
    assert raised.value.code == "lora-missing"


async def test_missing_lora_is_an_error_only_when_required(image_engine_rig: ImageEngineRig) -> None:
    missing = (image_engine_rig.folder / "missing.safetensors").as_uri()
    with pytest.raises(PermanentError) as raised:
        await image_engine_rig.draw(variant(lora=Lora(uri=missing)))
    assert raised.value.code == "lora-missing"
    without = await image_engine_rig.draw(variant(lora=Lora(uri=missing, required=False)))
    assert without.lora_missing
    assert image_engine_rig.max_pixel_difference(without, await image_engine_rig.draw(SMALL)) <= 1


async def test_incompatible_lora_fails_only_its_order(image_engine_rig: ImageEngineRig) -> None:
    """The header is valid; the shapes are those of another model."""
    import torch
    from safetensors.torch import save_file

    incompatible = image_engine_rig.folder / "incompatible.safetensors"
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{name}.lora_A.weight": torch.ones(4, 320), f"{name}.lora_B.weight": torch.ones(320, 4)}, incompatible)
    error, result = await asyncio.gather(
        image_engine_rig.draw(variant(lora=Lora(uri=incompatible.as_uri()))),
        image_engine_rig.draw(variant(lora=image_engine_rig.lora("b"))),
        return_exceptions=True,
    )
    assert isinstance(error, PermanentError)
    assert error.code == "lora-invalid"
    assert "incompatible.safetensors" in str(error)
    assert isinstance(result, ImageDone)


async def test_cancelled_order_frees_slot(image_engine_rig: ImageEngineRig) -> None:
    endless = asyncio.create_task(image_engine_rig.draw(variant(steps=500, count=4, width=256, height=256)))
    while not image_engine_rig.progress_events:
        await asyncio.sleep(0.01)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert (await image_engine_rig.draw(SMALL)).images
    assert image_engine_rig.executor.in_flight == 0
    assert not image_engine_rig.executor.stats.exits
    assert list(image_engine_rig.executor.shm_dir.iterdir()) == []


async def test_unknown_model_is_rejected(image_engine_rig: ImageEngineRig) -> None:
    with pytest.raises(PermanentError) as raised:
        await image_engine_rig.draw(variant(model="sdxl"))
    assert raised.value.code == "model-unknown"


async def test_order_is_reproducible_after_engine_kill(image_engine_rig: ImageEngineRig) -> None:
    before = await image_engine_rig.draw(SMALL)
    order = asyncio.create_task(image_engine_rig.draw(variant(steps=60, width=256, height=256)))
    while not image_engine_rig.progress_events:
        await asyncio.sleep(0.01)
    process = image_engine_rig.executor.process_id
    assert process
    os.kill(process, signal.SIGKILL)
    assert (await order).images
    assert image_engine_rig.executor.process_id != process
    assert (await image_engine_rig.draw(SMALL)).images[0].sha256 == before.images[0].sha256
