"""The image actor: its settings, the request to the engine, and the LoRA file cache."""

import asyncio
import gc
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from actors.engines.diffusion.input_pictures import PictureReader
from actors.engines.diffusion.lora.file_cache import LoraFileCache, sibling_address
from actors.engines.diffusion.lora.strength import AdapterConfig
from actors.engines.diffusion.requests import DiffusionRequest, DiffusionResult, LoraFile
from actors.engines.process.executor import ExecutionResult, Executor
from actors.engines.settings import ImageSettings
from actors.image import OrderFiles, OrderSources, build_actor, build_engine_request, derive_seed, fetch_files, fetch_lora, image
from bus.errors import PermanentError, TemporaryError
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from contracts.image import Control, Edit, Image, ImageDone, Lora
from tests.support.actor_context import make_context
from tests.support.lora_files import lora_pair, write_safetensors
from tests.support.picture_files import png
from tests.support.webhook_backend import open_webhook_backend


@pytest.fixture
def loras(claims: ClaimStore, tmp_path: Path) -> LoraFileCache:
    return LoraFileCache(claims, ImageSettings(local_cache=tmp_path / "cache"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_safetensors(tmp_path / "style.safetensors", lora_pair())


def test_actor_module_imports_no_model_library() -> None:
    code = "import sys, actors.image; assert not {'torch', 'diffusers', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_prefetch_is_ten_by_default() -> None:
    assert build_actor().prefetch == 10


def test_settings_are_read_when_the_actor_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when its module is imported. The variable has the source system's name."""
    monkeypatch.setenv("MAX_CONCURRENT_GENERATIONS", "3")
    assert build_actor().prefetch == 3


def test_missing_seed_is_derived_from_message_id() -> None:
    first, second = (build_engine_request(Image(prompt="x"), make_context("m-1"), OrderFiles()).seed for _ in range(2))
    assert first == second == derive_seed("m-1") != derive_seed("m-2")
    assert build_engine_request(Image(prompt="x", seed=0), make_context("m-1"), OrderFiles()).seed == 0


async def test_lora_is_cached_under_its_sha256(loras: LoraFileCache, weights: Path) -> None:
    file = await loras.fetch(Lora(uri=weights.as_uri(), scale=0.5), None)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert file == LoraFile(loras.folder / f"{sha256}.safetensors", sha256, 0.5, weights.as_uri())
    assert file.path.read_bytes() == weights.read_bytes()


async def test_concurrent_orders_share_one_lora_fetch(loras: LoraFileCache, weights: Path) -> None:
    lora = Lora(uri=weights.as_uri())
    await asyncio.gather(*(loras.fetch(lora, None) for _ in range(5)))
    await loras.fetch(lora, None)
    assert loras.fetch_count == 1


async def test_cached_lora_is_found_by_sha256_without_fetch(loras: LoraFileCache, weights: Path) -> None:
    file = await loras.fetch(Lora(uri=weights.as_uri()), None)
    cached = await loras.fetch(Lora(uri="s3://gone/style.safetensors", sha256=file.sha256), None)
    assert cached.path == file.path
    assert loras.fetch_count == 1


async def test_lora_with_wrong_sha256_is_rejected_and_not_cached(loras: LoraFileCache, weights: Path, tmp_path: Path) -> None:
    other = await loras.fetch(Lora(uri=write_safetensors(tmp_path / "other.safetensors", lora_pair(3)).as_uri()), None)
    with pytest.raises(PermanentError) as raised:
        await loras.fetch(Lora(uri=weights.as_uri(), sha256="0" * 64), None)
    assert raised.value.code == "lora-invalid"
    assert list(loras.folder.glob("*")) == [other.path], "the folder exists and holds the other file only"


async def test_broken_lora_is_named_and_not_cached(loras: LoraFileCache, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(PermanentError) as raised:
        await loras.fetch(Lora(uri=broken.as_uri()), None)
    assert raised.value.code == "lora-invalid"
    assert "broken.safetensors" in str(raised.value)
    assert list(loras.folder.glob("*")) == []


async def test_missing_lora_is_an_error_only_when_required(loras: LoraFileCache, tmp_path: Path) -> None:
    uri = (tmp_path / "lost.safetensors").as_uri()
    with pytest.raises(PermanentError) as raised:
        await fetch_lora(Lora(uri=uri), None, loras)
    assert raised.value.code == "lora-missing"
    assert await fetch_lora(Lora(uri=uri, required=False), None, loras) is None


async def test_same_bytes_at_two_addresses_do_not_disturb_each_other(loras: LoraFileCache, weights: Path) -> None:
    """Nor does the eviction of what was fetched meanwhile."""
    twin = Path(shutil.copy(weights, weights.with_name("twin.safetensors")))
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    for _ in range(50):
        (loras.folder / f"{sha256}.safetensors").unlink(missing_ok=True)
        files = await asyncio.gather(*(loras.fetch(Lora(uri=file.as_uri()), None) for file in (weights, twin)))
        assert [file.path.read_bytes() for file in files] == [weights.read_bytes()] * 2
        assert list(loras.folder.iterdir()) == [files[0].path]


async def test_pinned_order_does_not_pin_the_address(loras: LoraFileCache, weights: Path) -> None:
    """An order without a sha256 gets what is at the address, also after one that named the weights of before."""
    old = await loras.fetch(Lora(uri=weights.as_uri()), None)
    loras._known.clear()
    write_safetensors(weights, lora_pair(3))
    pinned = await loras.fetch(Lora(uri=weights.as_uri(), sha256=old.sha256), None)
    newest = await loras.fetch(Lora(uri=weights.as_uri()), None)
    assert pinned.sha256 == old.sha256
    assert newest.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest() != old.sha256


async def test_no_lock_remains_after_a_fetch(loras: LoraFileCache, weights: Path) -> None:
    for number in range(20):
        with pytest.raises(PermanentError):
            await loras.fetch(Lora(uri=weights.with_name(f"lost-{number}").as_uri()), None)
    await asyncio.gather(*(loras.fetch(Lora(uri=weights.as_uri()), None) for _ in range(3)))
    gc.collect()
    assert len(loras._locks) == 0


async def test_forbidden_weights_count_as_missing(loras: LoraFileCache, tmp_path: Path) -> None:
    """A server that lets nobody list its files answers 403 for a missing one. What the settings refuse is an error for every order."""
    async with open_webhook_backend() as server:
        settings = StoreSettings(store_url=tmp_path.as_uri(), allow_private_addresses=True, allow_plain_http=True)
        async with open_claim_store(settings) as loras.claims:
            for status in (401, 403):
                server.responses = [status, status]
                uri = f"{server.url}/style.safetensors"
                assert await fetch_lora(Lora(uri=uri, required=False), None, loras) is None
                with pytest.raises(PermanentError, match=str(status)) as raised:
                    await fetch_lora(Lora(uri=uri), None, loras)
                assert raised.value.code == "lora-missing"
            with pytest.raises(PermanentError) as raised:
                await fetch_lora(Lora(uri="s3://unnamed/style.safetensors", required=False), None, loras)
            assert raised.value.code == "asset-refused"


async def test_configuration_beside_the_weights_is_read_once(loras: LoraFileCache, weights: Path) -> None:
    assert (await loras.fetch(Lora(uri=weights.as_uri()), None)).config is None
    config = weights.with_name("adapter_config.json")
    config.write_text('{"r": 4, "lora_alpha": 16}')
    assert (await loras.fetch(Lora(uri=weights.as_uri()), None)).config is None, "an address holds the same for some minutes"
    weights = weights.rename(weights.with_name("adapter_model.safetensors"))
    for uri in (weights.as_uri(), f"{weights.parent.as_uri()}/"):
        file = await loras.fetch(Lora(uri=uri), None)
        assert file.config == AdapterConfig(r=4, lora_alpha=16), "an address that ends in a slash is a folder"
    other = shutil.copytree(weights.parent, weights.parent / "other", ignore=shutil.ignore_patterns("cache"))
    (other / config.name).write_text('{"r": 4, "lora_alpha": 8}')
    weaker = await loras.fetch(Lora(uri=f"{other.as_uri()}/"), None)
    assert (weaker.sha256, weaker.slot_key == file.slot_key) == (file.sha256, False), "the same weights with another strength"


@pytest.mark.parametrize("content", ["<html>not found</html>", '{"peft_type": "IA3"}', '{"r": 4}' + " " * 300_000])
async def test_invalid_configuration_is_named(loras: LoraFileCache, weights: Path, content: str) -> None:
    weights.with_name("adapter_config.json").write_text(content)
    with pytest.raises(PermanentError, match=r"adapter_config\.json beside it") as raised:
        await loras.fetch(Lora(uri=weights.as_uri()), None)
    assert raised.value.code == "lora-invalid"


async def test_configuration_is_not_read_when_the_weights_say_alpha(loras: LoraFileCache, tmp_path: Path) -> None:
    alpha = {"unet.mid.to_q.alpha": ("F32", [])}
    weights = write_safetensors(tmp_path / "kohya.safetensors", lora_pair() | alpha)
    weights.with_name("adapter_config.json").write_text("not JSON")
    assert (await loras.fetch(Lora(uri=weights.as_uri()), None)).config is None


async def test_forbidden_configuration_is_none_and_unavailable_one_is_retried(loras: LoraFileCache, weights: Path) -> None:
    """A store that may not be listed says "forbidden" of a missing object. An order does not lose its strength in an outage."""

    class Claims:
        def __init__(self, error: Exception) -> None:
            self.error = error

        async def fetch(self, uri: str, **_: object) -> bytes:
            if uri.endswith("adapter_config.json"):
                raise self.error
            return weights.read_bytes()

    loras.claims = Claims(TemporaryError("the store is down"))  # type: ignore[assignment]
    with pytest.raises(TemporaryError):
        await loras.fetch(Lora(uri="s3://b/style.safetensors"), None)
    loras.claims = Claims(PermanentError("asset-forbidden", "403"))  # type: ignore[assignment]
    file = await loras.fetch(Lora(uri="s3://b/style.safetensors", alpha=8), None)
    assert (file.config, file.assumed_alpha, file.assumed_from) == (None, 8, "order")


@pytest.mark.parametrize(
    ("uri", "sibling"),
    [
        ("file:///models/style 1/adapter_model.safetensors", "file:///models/style 1/adapter_config.json"),
        ("s3://bucket/adapter_model.safetensors", "s3://bucket/adapter_config.json"),
        ("s3://bucket/style#1?a/w.safetensors", "s3://bucket/style#1?a/adapter_config.json"),
        ("gs://bucket/a#b/c?d", "gs://bucket/a#b/adapter_config.json"),
        ("file:///models/style#1/w.safetensors", "file:///models/style#1/adapter_config.json"),
        ("gs://bucket/models/style-1/weights", "gs://bucket/models/style-1/adapter_config.json"),
        ("https://host/a/b.safetensors?X-Amz-Signature=c/d#e", "https://host/a/adapter_config.json?X-Amz-Signature=c/d"),
        ("https://host/storage/v1/b/b/o/models%2Fa%2fw.safetensors?alt=media", "https://host/storage/v1/b/b/o/models%2Fa%2fadapter_config.json?alt=media"),
        ("https://host", "https://host/adapter_config.json"),
    ],
)  # fmt: skip
def test_address_of_the_configuration(uri: str, sibling: str) -> None:
    assert sibling_address(uri, "adapter_config.json") == sibling


async def test_disk_cache_stays_within_its_size_limit(claims: ClaimStore, tmp_path: Path) -> None:
    files = [write_safetensors(tmp_path / f"{rank}.safetensors", lora_pair(rank)) for rank in (2, 3, 4)]
    limit = files[1].stat().st_size + files[2].stat().st_size
    loras = LoraFileCache(claims, ImageSettings(local_cache=tmp_path / "cache", lora_cache_bytes=limit))
    cached = [await loras.fetch(Lora(uri=file.as_uri()), None) for file in files]
    assert [file.path.exists() for file in cached] == [False, True, True]


async def test_order_with_several_loras_is_drawn_without_the_missing_optional_one(loras: LoraFileCache, weights: Path) -> None:
    lost = weights.with_name("lost.safetensors").as_uri()
    command = Image(
        prompt="x", lora=Lora(uri=weights.as_uri()), loras=[Lora(uri=lost, required=False), Lora(uri=weights.as_uri(), scale=0.5)]
    )
    sources = OrderSources(loras, PictureReader(loras.claims, loras.settings))
    files = await fetch_files(command, None, sources)
    assert [file.scale for file in files.loras] == [1.0, 0.5]
    done = await draw(command, sources, ResultOf({"lora_alpha_from": "weights,assumed,order"}))
    assert (done.lora_missing, done.lora_alpha_from) == (True, "assumed")
    required = command.model_copy(update={"loras": [Lora(uri=lost)]})
    with pytest.raises(PermanentError) as raised:
        await fetch_files(required, None, sources)
    assert raised.value.code == "lora-missing"


class ResultOf:
    """An executor whose engine decides what the order left open, and draws two files."""

    def __init__(self, metadata: dict[str, str]) -> None:
        self.metadata, self.requests = metadata, list[DiffusionRequest]()

    async def run(self, request: DiffusionRequest, **_: object) -> ExecutionResult:
        self.requests.append(request)
        result = DiffusionResult((7, 8), self.metadata, (), 2, "Toy", width=128, height=64, steps=4, guidance_scale=1.5)
        return ExecutionResult(result, [b"one", b"two"], 0.5, 1.5)


async def draw(command: Image, sources: OrderSources, executor: ResultOf) -> ImageDone:
    claims, running = sources.loras.claims, cast("Executor", executor)
    return await image(command, make_context(), claims=claims, executor=running, sources=sources, signature_max_bytes=1)


async def test_what_the_model_decided_and_the_ordered_format_are_in_the_result(loras: LoraFileCache, weights: Path) -> None:
    picture = await loras.claims.write(png(), tenant=None, media_type="image/png")
    executor, sources = ResultOf({"job": "j"}), OrderSources(loras, PictureReader(loras.claims, loras.settings))
    command = Image(
        prompt="x", count=2, seed=7, true_cfg_scale=2, edit=Edit(image=picture, strength=0.3), output_format="webp", quality=70
    )  # fmt: skip
    done = await draw(command, sources, executor)
    (request,) = executor.requests
    assert (request.width, request.steps, request.guidance_scale, request.scheduler, request.true_cfg_scale) == (None, None, None, None, 2)
    assert (request.output_format, request.quality, request.count, request.seed) == ("webp", 70, 2, 7)
    assert request.edit
    assert (request.edit.image.width, request.edit.strength, request.edit.mask) == (60, 0.3, None)
    assert done.metadata.model_dump() == {"seed": 7, "steps": 4, "guidance_scale": 1.5}
    assert (done.family, done.seeds, done.lora_missing, done.lora_alpha_from) == ("Toy", [7, 8], False, None)
    assert [(claim.media_type, claim.width, claim.height) for claim in done.images] == [("image/webp", 128, 64)] * 2
    assert await loras.claims.is_generated(done.images[0], tenant=None)


async def test_picture_to_follow_reaches_the_engine(loras: LoraFileCache) -> None:
    picture = await loras.claims.write(png(), tenant=None, media_type="image/png")
    executor, sources = ResultOf({}), OrderSources(loras, PictureReader(loras.claims, loras.settings))
    await draw(Image(prompt="x", control=Control(image=picture, model="canny", scale=0.5)), sources, executor)
    control = executor.requests[0].control
    assert control
    assert (control.model, control.scale, control.image.width) == ("canny", 0.5, 60)
