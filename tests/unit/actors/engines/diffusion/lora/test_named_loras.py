"""LoRAs that an order names: the address is the operator's, so the tenant's rights do not bind it, and no message shows it."""

from pathlib import Path
from typing import Any

import pytest

from actors.engines.diffusion.lora.file_cache import LoraFileCache
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from contracts.image import Lora
from tests.support.lora_files import lora_pair, write_safetensors

SECRET = "secret-folder"
"""In the operator's addresses."""


async def fetch(tmp_path: Path, lora: Lora, tenant: str | None, claims: ClaimStore | None = None, **settings: Any) -> Any:
    folder = tmp_path / "store" / SECRET
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "ink.safetensors", lora_pair(4))
    write_safetensors(folder / "other.safetensors", lora_pair(6))
    loras = {"ink": (folder / "ink.safetensors").as_uri(), "gone": (folder / "gone.safetensors").as_uri()}
    image_settings = ImageSettings(local_cache=tmp_path / "cache", loras=loras, **settings)
    async with open_claim_store(StoreSettings(store_url=(tmp_path / "store").as_uri())) as opened:
        return await LoraFileCache(claims or opened, image_settings).fetch(lora, tenant)


async def test_configured_address_in_the_store_is_read_for_every_tenant(tmp_path: Path) -> None:
    """The same address in an order is refused to a tenant."""
    for tenant in (None, "shop", "office"):
        file = await fetch(tmp_path, Lora(name="ink", scale=0.5), tenant)
        assert (file.origin, file.scale) == ("ink", 0.5)
        assert file.path.read_bytes() == (tmp_path / "store" / SECRET / "ink.safetensors").read_bytes()
    with pytest.raises(PermanentError) as raised:
        await fetch(tmp_path, Lora(uri=(tmp_path / "store" / SECRET / "ink.safetensors").as_uri()), "shop")
    assert raised.value.code == "asset-refused"


async def test_name_that_is_not_configured_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="'night' is not in IMAGE_LORAS: ink, gone") as raised:
        await fetch(tmp_path, Lora(name="night"), "shop")
    assert raised.value.code == "lora-unknown"


async def test_message_of_a_missing_file_hides_the_address(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="weights of 'gone' cannot be read") as raised:
        await fetch(tmp_path, Lora(name="gone"), "shop")
    assert raised.value.code == "lora-missing"
    assert SECRET not in str(raised.value)
    with pytest.raises(PermanentError, match=r"LoRA ink cannot be used: it has more than 100 bytes \(IMAGE_LORA_MAX_BYTES\)") as raised:
        await fetch(tmp_path, Lora(name="ink"), "shop", lora_max_bytes=100)
    assert SECRET not in str(raised.value)


async def test_message_of_a_store_that_is_away_hides_the_address(tmp_path: Path) -> None:
    class AbsentStore:
        async def fetch(self, uri: str, **_: Any) -> bytes:
            raise TemporaryError(f"{uri} did not respond", code="storage-unavailable")

    claims: Any = AbsentStore()
    with pytest.raises(TemporaryError, match="weights of 'ink' cannot be read at present") as raised:
        await fetch(tmp_path, Lora(name="ink"), "shop", claims)
    assert raised.value.code == "storage-unavailable"
    assert SECRET not in str(raised.value)


async def test_sha256_of_another_file_chooses_no_file(tmp_path: Path) -> None:
    """The installation itself has fetched another one, whose sha256 its pictures publish: with a name it is no way to use it."""
    other = await fetch(tmp_path, Lora(uri=(tmp_path / "store" / SECRET / "other.safetensors").as_uri()), None)
    with pytest.raises(PermanentError, match=f"the order says {other.sha256}") as raised:
        await fetch(tmp_path, Lora(name="ink", sha256=other.sha256), "shop")
    assert raised.value.code == "lora-invalid"
    ink = await fetch(tmp_path, Lora(name="ink"), "shop")
    assert (await fetch(tmp_path, Lora(name="ink", sha256=ink.sha256), "shop")).path == ink.path
