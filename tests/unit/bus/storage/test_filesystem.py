"""The claim store in a folder, and the fetching of foreign assets."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bus.errors import PermanentError, TemporaryError
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from tests.support.webhook_backend import OMIT_HEADER, open_webhook_backend

PICTURE = b"\x89PNG" + bytes(1000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "a store"


@pytest.fixture
async def claims(root: Path) -> ClaimStore:
    async with open_claim_store(StoreSettings(store_url=root.as_uri())) as store:
        return store


async def test_write_leaves_one_readable_file(claims: ClaimStore, root: Path) -> None:
    claim = await claims.write(PICTURE, media_type="image/png", tenant=None)
    files = [path for path in root.rglob("*") if path.is_file()]
    assert [path.name for path in files] == [f"{claim.sha256}.png"]
    assert files[0].stat().st_mode & 0o777 == 0o644


async def test_modified_file_is_corrupt_and_rewritten_on_write(claims: ClaimStore, root: Path) -> None:
    claim = await claims.write(PICTURE, media_type="image/png", tenant=None)
    path = next(path for path in root.rglob("*.png"))
    for modified in (PICTURE[::-1], b"", PICTURE + b"x"):
        path.write_bytes(modified)
        with pytest.raises(PermanentError) as error:
            await claims.read(claim, tenant=None)
        assert error.value.code == "claim-corrupt"
    assert await claims.read(await claims.write(PICTURE, media_type="image/png", tenant=None), tenant=None) == PICTURE


async def test_symlink_out_of_store_is_rejected(claims: ClaimStore, root: Path, tmp_path: Path) -> None:
    claim = await claims.write(PICTURE, media_type="image/png", tenant=None)
    (tmp_path / "outside.png").write_bytes(PICTURE)
    (root / "claims" / "link.png").symlink_to(tmp_path / "outside.png")
    link = (root / "claims").as_uri() + "/link.png"
    with pytest.raises(PermanentError) as error:
        await claims.read(claim.model_copy(update={"uri": link}), tenant=None)
    assert error.value.code == "claim-refused"
    with pytest.raises(PermanentError) as error:
        await claims.fetch(link, max_bytes=10**6, tenant=None)
    assert error.value.code == "asset-refused"


@pytest.mark.parametrize("tail", ["/../../outside.png", "/%2e%2e/%2e%2e/outside.png", "/..%2f..%2foutside.png"])
async def test_path_traversal_is_rejected(claims: ClaimStore, root: Path, tmp_path: Path, tail: str) -> None:
    claim = await claims.write(PICTURE, media_type="image/png", tenant=None)
    (tmp_path / "outside.png").write_bytes(PICTURE)
    outside = (root / "claims").as_uri() + tail
    with pytest.raises(PermanentError) as error:
        await claims.read(claim.model_copy(update={"uri": outside}), tenant=None)
    assert error.value.code == "claim-refused"


async def test_long_path_is_rejected_at_once(claims: ClaimStore) -> None:
    claim = await claims.write(PICTURE, media_type="image/png", tenant="shop")
    deep = f"file:///{'a/' * 500_000}x"
    started = time.monotonic()
    for call in (claims.read(claim.model_copy(update={"uri": deep}), tenant="shop"), claims.fetch(deep, tenant="shop", max_bytes=10)):
        with pytest.raises(PermanentError):
            await call
    assert time.monotonic() - started < 2


async def test_missing_store_folder_is_unavailable(claims: ClaimStore, root: Path, tmp_path: Path) -> None:
    claim = await claims.write(PICTURE, media_type="image/png", tenant=None)
    root.rename(tmp_path / "unmounted")
    with pytest.raises(TemporaryError):
        await claims.read(claim, tenant=None)


async def test_unwritable_store_is_temporary(claims: ClaimStore, root: Path) -> None:
    root.write_text("a file where the folder should be")
    with pytest.raises(TemporaryError, match="Is the disk full"):
        await claims.write(PICTURE, media_type="image/png", tenant=None)


async def test_full_disk_is_temporary_and_leaves_no_file(root: Path) -> None:
    """Simulated by a limit on the size of files, in a process of its own."""
    code = """
import asyncio, resource, signal, sys
from bus.errors import TemporaryError
from bus.storage.settings import StoreSettings
from bus.storage.claim_store import open_claim_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
async def main():
    async with open_claim_store(StoreSettings(store_url=sys.argv[1])) as claims:
        try:
            await claims.write(bytes(100_000), media_type="image/png", tenant=None)
        except TemporaryError as error:
            print(error)
asyncio.run(main())
"""
    # -B: a module imported under this limit would leave a truncated .pyc file behind.
    done = subprocess.run([sys.executable, "-B", "-c", code, root.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    assert "too large" in done.stdout
    assert [path for path in root.rglob("*") if path.is_file()] == []


async def test_assets_are_read_from_asset_roots(root: Path, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    asset = tmp_path / "loras" / "style.safetensors"
    asset.write_bytes(b"weights")
    async with open_claim_store(StoreSettings(store_url=root.as_uri(), asset_roots=f"/nowhere,{tmp_path / 'loras'}")) as claims:
        assert await claims.fetch(asset.as_uri(), max_bytes=7, tenant=None) == b"weights"
        with pytest.raises(PermanentError) as error:
            await claims.fetch((tmp_path / "loras").as_uri(), max_bytes=10**6, tenant=None)
        assert error.value.code == "asset-missing"


async def test_folder_store_imports_neither_s3_nor_torch() -> None:
    heavy = ("aioboto3", "botocore", "aiohttp", "torch", "numpy")
    code = f"import sys, bus.storage.claim_store; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (404, "asset-missing"),
        (410, "asset-missing"),
        (401, "asset-forbidden"),
        (403, "asset-forbidden"),
        (204, "asset-refused"),
        (301, "asset-refused"),
        ((301, {"Location": "ftp://host/"}), "asset-refused"),
        (206, "asset-refused"),
    ],
)
async def test_asset_client_error_is_permanent(root: Path, response: int | tuple[int, dict[str, str]], code: str) -> None:
    async with open_webhook_backend() as server, open_claim_store(local_settings(root)) as claims:
        server.responses = [response]
        with pytest.raises(PermanentError) as error:
            await claims.fetch(f"{server.url}/style.safetensors?token=abc", max_bytes=10**6, tenant=None)
        assert error.value.code == code
        assert "abc" not in str(error.value)


@pytest.mark.parametrize("response", [500, 503, 429, None])
async def test_asset_server_error_is_temporary(root: Path, response: int | None) -> None:
    async with open_webhook_backend() as server, open_claim_store(local_settings(root)) as claims:
        server.responses = [response]
        with pytest.raises(TemporaryError) as error:
            await claims.fetch(f"{server.url}/style.safetensors", max_bytes=10**6, tenant=None)
        assert error.value.code == "asset-unreachable"


async def test_https_asset_is_fetched_up_to_the_limit(root: Path) -> None:
    async with open_webhook_backend() as server, open_claim_store(local_settings(root)) as claims:
        assert await claims.fetch(f"{server.url}/a", max_bytes=16, tenant=None) == b'{"success":true}'
        server.responses = [200, (200, {"Content-Length": OMIT_HEADER})]
        for _ in server.responses.copy():
            with pytest.raises(PermanentError) as error:
                await claims.fetch(f"{server.url}/a", max_bytes=15, tenant=None)
            assert error.value.code == "asset-too-large"


async def test_only_allowed_hosts_are_fetched_from(root: Path) -> None:
    async with open_webhook_backend() as server, open_claim_store(local_settings(root, asset_allowed_hosts=("cdn.example",))) as claims:
        with pytest.raises(PermanentError, match="ASSET_ALLOWED_HOSTS"):
            await claims.fetch(f"{server.url}/a", max_bytes=16, tenant=None)
    assert server.requests == []


def local_settings(root: Path, **more: object) -> StoreSettings:
    """Settings under which assets may be fetched from this machine."""
    return StoreSettings.model_validate({"store_url": root.as_uri(), "allow_private_addresses": True, "allow_plain_http": True, **more})
