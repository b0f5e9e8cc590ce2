"""LoRA weights and their configuration from every kind of address: a folder, a bucket of S3, one of Google's, a web server."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.engines.diffusion.lora.file_cache import LoraFileCache
from actors.engines.diffusion.lora.strength import AdapterConfig
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts.image import Lora
from tests.support.google_storage import open_google
from tests.support.lora_files import lora_pair, write_safetensors

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["to_q"]}
FOLDER = "models/style 10"


@asynccontextmanager
async def open_loras(tmp_path: Path, **settings: Any) -> AsyncIterator[LoraFileCache]:
    store = StoreSettings(**({"store_url": (tmp_path / "store").as_uri(), "asset_roots": (tmp_path / "models",)} | settings))
    async with open_claim_store(store) as claims:
        yield LoraFileCache(claims, ImageSettings(local_cache=tmp_path / "cache"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """An adapter as PEFT saves it."""
    weights = write_safetensors(tmp_path / "adapter_model.safetensors", lora_pair(4, "base_model.model.mid.to_q"))
    return {"adapter_model.safetensors": weights.read_bytes(), "adapter_config.json": json.dumps(CONFIG).encode()}


async def test_folder(files: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    async with open_loras(tmp_path) as loras:
        await check(loras, f"{folder.as_uri()}/", None, "shop")


async def check(loras: LoraFileCache, prefix: str, *tenants: str | None) -> None:
    """The address of the weights and that of their folder give both files."""
    for tenant in tenants:
        for uri in (f"{prefix}adapter_model.safetensors", prefix):
            file = await loras.fetch(Lora(uri=uri), tenant)
            assert file.config == AdapterConfig(r=4, lora_alpha=16)
            assert file.path.exists()


@pytest.mark.parametrize("place", ["store", "other bucket"])
async def test_bucket_of_s3(
    place: str, files: dict[str, bytes], tmp_path: Path, s3_endpoint: str, bucket: str, s3_settings: dict[str, Any]
) -> None:
    """In the store for the installation alone, elsewhere for tenants too."""
    async with httpx.AsyncClient() as http:
        for name, data in files.items():
            (await http.put(f"{s3_endpoint}/{bucket}/{FOLDER}/{name}", content=data)).raise_for_status()
    if place == "store":
        async with open_loras(tmp_path, **(s3_settings | {"store_url": f"s3://{bucket}"})) as loras:
            await check(loras, f"s3://{bucket}/{FOLDER}/", None)
            with pytest.raises(PermanentError, match="lies in the store"):
                await loras.fetch(Lora(uri=f"s3://{bucket}/{FOLDER}/"), "shop")
    else:
        settings = s3_settings | {"store_url": (tmp_path / "store").as_uri(), "asset_buckets": (f"{bucket}/models",)}
        async with open_loras(tmp_path, **settings) as loras:
            await check(loras, f"s3://{bucket}/{FOLDER}/", None, "shop")


async def test_private_bucket_of_google(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_google({f"{FOLDER}/{name}": data for name, data in files.items()}) as google:
        google.token = "secret-token"
        monkeypatch.setenv("GCS_API_URL", google.url)
        monkeypatch.setenv("GCS_TOKEN", google.token)
        async with open_loras(tmp_path) as loras:
            await check(loras, f"gs://media/{FOLDER}/", None)
        async with open_loras(tmp_path, asset_buckets=("gs://media",)) as loras:
            await check(loras, f"gs://media/{FOLDER}/", "shop")
        assert set(google.authorizations) == {"Bearer secret-token"}
        assert sorted({name for name, _ in google.reads}) == [f"{FOLDER}/{name}" for name in sorted(files)]


async def test_web_server(files: dict[str, bytes], tmp_path: Path) -> None:
    """Its address has a query, and the slashes of the path are escaped."""
    async with open_google({f"{FOLDER}/{name}": data for name, data in files.items()}) as server:
        prefix = f"{server.url}/storage/v1/b/media/o/models%2Fstyle%2010%2F"
        async with open_loras(tmp_path, allow_private_addresses=True, allow_plain_http=True) as loras:
            file = await loras.fetch(Lora(uri=f"{prefix}adapter_model.safetensors?alt=media"), "shop")
            assert file.config == AdapterConfig(r=4, lora_alpha=16)
            del server.objects[f"{FOLDER}/adapter_config.json"]
            lone = await loras.fetch(Lora(uri=f"{prefix}adapter_model.safetensors?alt=media", alpha=16), "office")
            assert (lone.config, lone.assumed_alpha, lone.assumed_from) == (None, 16, "order")
