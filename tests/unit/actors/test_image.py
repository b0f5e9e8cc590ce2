"""The image actor: what it asks of the engine, and which LoRA it lets come near."""

import asyncio
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from actors.engines.diffusion.lora.file_cache import LoraFileCache, redact_uri
from actors.engines.diffusion.requests import LoraFile
from actors.engines.settings import ImageSettings
from actors.image import ACTOR, build_engine_request, derive_seed, fetch_lora
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.image import Image, Lora
from tests.support.actor_context import make_context
from tests.unit.actors.engines.diffusion.lora.test_validation import pair, write


@pytest.fixture
def loras(claims: ClaimStore, tmp_path: Path) -> LoraFileCache:
    return LoraFileCache(claims, ImageSettings(local_cache=tmp_path / "cache"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write(tmp_path / "style.safetensors", pair())


def test_the_parent_of_the_model_process_never_imports_torch() -> None:
    code = "import sys, actors.image; assert not {'torch', 'diffusers', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_prefetch_is_ten() -> None:
    assert ACTOR.prefetch == 10


def test_the_setting_keeps_the_source_systems_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_CONCURRENT_GENERATIONS", "3")
    assert ImageSettings().max_concurrent_generations == 3


def test_missing_seed_is_derived_from_message_id() -> None:
    one, again = (build_engine_request(Image(prompt="x"), make_context("m-1"), None).seed for _ in range(2))
    assert one == again == derive_seed("m-1") != derive_seed("m-2")
    assert build_engine_request(Image(prompt="x", seed=0), make_context("m-1"), None).seed == 0


async def test_lora_is_cached_under_its_sha256(loras: LoraFileCache, weights: Path) -> None:
    file = await loras.fetch(Lora(uri=weights.as_uri(), scale=0.5))
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert file == LoraFile(loras.folder / f"{sha256}.safetensors", sha256, 0.5, weights.as_uri())
    assert file.path.read_bytes() == weights.read_bytes()


async def test_concurrent_orders_share_one_lora_fetch(loras: LoraFileCache, weights: Path) -> None:
    lora = Lora(uri=weights.as_uri())
    await asyncio.gather(*(loras.fetch(lora) for _ in range(5)))
    await loras.fetch(lora)
    assert loras.fetch_count == 1


async def test_weights_that_are_named_by_their_sha256_need_no_fetch_from_elsewhere(loras: LoraFileCache, weights: Path) -> None:
    file = await loras.fetch(Lora(uri=weights.as_uri()))
    again = await loras.fetch(Lora(uri="s3://gone/style.safetensors", sha256=file.sha256))
    assert again.path == file.path
    assert loras.fetch_count == 1


async def test_lora_with_wrong_sha256_is_rejected_and_not_cached(loras: LoraFileCache, weights: Path) -> None:
    with pytest.raises(PermanentError) as caught:
        await loras.fetch(Lora(uri=weights.as_uri(), sha256="0" * 64))
    assert caught.value.code == "lora-invalid"
    assert list(loras.folder.glob("*")) == [] if loras.folder.exists() else True


async def test_broken_lora_is_named_and_not_cached(loras: LoraFileCache, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x80\x04 this was pickled")
    with pytest.raises(PermanentError) as caught:
        await loras.fetch(Lora(uri=broken.as_uri()))
    assert caught.value.code == "lora-invalid"
    assert "broken.safetensors" in str(caught.value)
    assert list(loras.folder.glob("*")) == []


async def test_missing_weights_are_fatal_only_when_they_are_required(loras: LoraFileCache, tmp_path: Path) -> None:
    uri = (tmp_path / "lost.safetensors").as_uri()
    with pytest.raises(PermanentError) as caught:
        await fetch_lora(Lora(uri=uri), loras)
    assert caught.value.code == "lora-missing"
    assert await fetch_lora(Lora(uri=uri, required=False), loras) is None


async def test_the_cache_on_the_disk_stays_within_its_limit(claims: ClaimStore, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{rank}.safetensors", pair(rank)) for rank in (2, 3, 4)]
    limit = files[1].stat().st_size + files[2].stat().st_size
    loras = LoraFileCache(claims, ImageSettings(local_cache=tmp_path / "cache", lora_cache_bytes=limit))
    kept = [await loras.fetch(Lora(uri=file.as_uri())) for file in files]
    assert [file.path.exists() for file in kept] == [False, True, True]


def test_fault_text_hides_url_signature() -> None:
    assert redact_uri("https://user:pass@host/a.safetensors?X-Amz-Signature=secret") == "https://host/a.safetensors"
