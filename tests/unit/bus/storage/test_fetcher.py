"""Fetching `gs://` addresses: whose request has the credentials of the installation, and where they go. The server is a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.errors import PermanentError, TemporaryError
from bus.storage.fetcher import AssetFetcher
from bus.storage.gcs import GcsCredentials, GcsSettings
from bus.storage.settings import StoreSettings
from tests.support.google_storage import GoogleBucket, open_google, respond
from tests.support.webhook_backend import open_webhook_backend, read_request

TOKEN = "ya29.secret-token"
WEIGHTS = b"weights " * 100
URI = "gs://media/models/style 1/가.safetensors"


@pytest.fixture
async def google(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GoogleBucket]:
    """A private bucket, which GCS_TOKEN may read."""
    async with open_google({"models/style 1/가.safetensors": WEIGHTS, "tenants/shop/a": WEIGHTS}) as bucket:
        bucket.token = TOKEN
        monkeypatch.setenv("GCS_API_URL", bucket.url)
        monkeypatch.setenv("GCS_TOKEN", TOKEN)
        monkeypatch.setenv("GCS_METADATA_URL", f"{bucket.url}/token")
        yield bucket


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def open_fetcher(stack: AsyncExitStack, folder: Path, **settings: Any) -> AssetFetcher:
    """Private addresses are allowed, since the server's is one."""
    rules = {"store_url": (folder / "store").as_uri(), "allow_private_addresses": True, "allow_plain_http": True}
    return AssetFetcher(StoreSettings(**(rules | settings)), stack)


async def refusal(fetcher: AssetFetcher, uri: str, tenant: str | None, code: str = "asset-refused") -> str:
    with pytest.raises(PermanentError) as raised:
        await fetcher.fetch(uri, tenant=tenant, max_bytes=10_000)
    assert raised.value.code == code
    assert TOKEN not in str(raised.value)
    return str(raised.value)


async def test_private_object_is_read_with_credentials_for_installation(
    google: GoogleBucket, stack: AsyncExitStack, tmp_path: Path
) -> None:
    """The guard of addresses is not asked: the settings name the host."""
    fetcher = open_fetcher(stack, tmp_path, allow_private_addresses=False, allow_plain_http=False)
    assert await fetcher.fetch(URI, tenant=None, max_bytes=10_000) == WEIGHTS
    assert google.authorizations == [f"Bearer {TOKEN}"]


async def test_tenant_reads_with_credentials_only_what_settings_name(google: GoogleBucket, stack: AsyncExitStack, tmp_path: Path) -> None:
    for buckets in ((), ("media",), ("*",), ("gs://other",), ("gs://media/models/style 2",), ("gs://media/model",)):
        fetcher = open_fetcher(stack, tmp_path, asset_buckets=buckets)
        assert "not public" in await refusal(fetcher, URI, "shop", "asset-forbidden"), buckets
    assert set(google.authorizations) == {""}
    for buckets in (("gs://media",), ("gs://media/models",)):
        fetcher = open_fetcher(stack, tmp_path, asset_buckets=buckets)
        assert await fetcher.fetch(URI, tenant="shop", max_bytes=10_000) == WEIGHTS


async def test_tenant_reads_public_object_without_credentials(google: GoogleBucket, stack: AsyncExitStack, tmp_path: Path) -> None:
    google.token = None
    assert await open_fetcher(stack, tmp_path).fetch(URI, tenant="shop", max_bytes=10_000) == WEIGHTS
    assert google.authorizations == [""]
    guarded = open_fetcher(stack, tmp_path, allow_private_addresses=False)
    assert "not on the public internet" in (await code_and_text(guarded, URI, "shop"))[1]


async def code_and_text(fetcher: AssetFetcher, uri: str, tenant: str | None) -> tuple[str, str]:
    with pytest.raises((PermanentError, TemporaryError)) as raised:
        await fetcher.fetch(uri, tenant=tenant, max_bytes=10_000)
    assert TOKEN not in str(raised.value)
    return raised.value.code, str(raised.value)


async def test_bucket_of_a_store_is_not_read_with_credentials_for_a_tenant(
    google: GoogleBucket, stack: AsyncExitStack, tmp_path: Path
) -> None:
    """Google's buckets can be an S3 store too. A bucket of the same name may be the store's."""
    for stores in ({"store_url": "s3://media"}, {"upload_url": "s3://media/tenants"}):
        fetcher = open_fetcher(stack, tmp_path, asset_buckets=("gs://media",), **stores)
        assert "not public" in await refusal(fetcher, "gs://media/tenants/shop/a", "office", "asset-forbidden")
        assert await fetcher.fetch("gs://media/tenants/shop/a", tenant=None, max_bytes=10_000) == WEIGHTS
    assert google.authorizations == ["", f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize(
    "uri",
    ["gs://", "gs://media", "gs://media/", "gs:///x", "gs://../x", "gs://media/a/../b", "gs://media//x", "gs://me%2fdia/x", "gs://a@b/x"],
)
async def test_address_of_another_form_is_refused_unasked(google: GoogleBucket, stack: AsyncExitStack, tmp_path: Path, uri: str) -> None:
    await refusal(open_fetcher(stack, tmp_path), uri, None)
    assert google.authorizations == []


async def test_allowed_hosts_hold_for_buckets_that_no_setting_names(google: GoogleBucket, stack: AsyncExitStack, tmp_path: Path) -> None:
    hosts = {"asset_allowed_hosts": ("media.example",)}
    assert "ASSET_ALLOWED_HOSTS" in await refusal(open_fetcher(stack, tmp_path, **hosts), URI, None)
    assert google.authorizations == []
    named = open_fetcher(stack, tmp_path, asset_buckets=("gs://media",), **hosts)
    assert await named.fetch(URI, tenant=None, max_bytes=10_000) == WEIGHTS


async def test_credentials_do_not_follow_a_redirect(google: GoogleBucket, stack: AsyncExitStack, tmp_path: Path) -> None:
    async with open_google({"x": WEIGHTS}) as elsewhere:
        google.redirect = f"{elsewhere.url}/storage/v1/b/b/o/x?alt=media"
        assert "redirects are not followed" in await refusal(open_fetcher(stack, tmp_path), URI, None)
        assert elsewhere.authorizations == []


async def test_https_address_of_the_same_host_has_no_credentials(google: GoogleBucket, stack: AsyncExitStack, tmp_path: Path) -> None:
    """Otherwise an address with a query of its own, such as a signed one, would be sent with a second authorization."""
    await refusal(open_fetcher(stack, tmp_path), f"{google.url}/storage/v1/b/media/o/models%2Fa?alt=media&token=x", None, "asset-forbidden")
    assert google.authorizations == [""]


async def test_missing_too_large_and_refused_have_codes_of_their_own(
    google: GoogleBucket, stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher = open_fetcher(stack, tmp_path)
    assert (await code_and_text(fetcher, "gs://media/absent", None))[0] == "asset-missing"
    google.objects["large"] = bytes(10_001)
    assert (await code_and_text(fetcher, "gs://media/large", None))[0] == "asset-too-large"
    monkeypatch.setenv("GCS_TOKEN", "expired")
    code, text = await code_and_text(open_fetcher(stack, tmp_path), URI, None)
    assert (code, "GCS_TOKEN is not valid" in text) == ("asset-unreachable", True), "an operator can renew it: the order is retried"
    monkeypatch.setenv("GCS_TOKEN", "other-account")
    assert "GCS_TOKEN may not read it" in await refusal(open_fetcher(stack, tmp_path), URI, None, "asset-forbidden")


async def test_bucket_of_s3_that_forbids_has_a_code_of_its_own(stack: AsyncExitStack, tmp_path: Path) -> None:
    """S3 says so of a missing object to an account that may not list the bucket."""
    async with open_webhook_backend() as server:
        server.responses = [403]
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_S3_ENDPOINT_URL": server.url}
        fetcher = open_fetcher(stack, tmp_path, asset_buckets=("media",), **keys)
        assert "the bucket forbids it" in await refusal(fetcher, "s3://media/absent", "shop", "asset-forbidden")


async def test_line_break_after_a_token_is_not_sent(
    google: GoogleBucket, stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token read from a file often ends with one, which no header may have."""
    monkeypatch.setenv("GCS_TOKEN", f"{TOKEN}\n")
    assert await open_fetcher(stack, tmp_path).fetch(URI, tenant=None, max_bytes=10_000) == WEIGHTS
    assert google.authorizations == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize(
    "uri", ["ftp://user:pw@host/x", "s3://b/x?X-Amz-Signature=pw", "https://user:pw@127.0.0.1/x?sig=pw", "gs://a:pw@b/x"]
)
async def test_faults_have_no_secret_of_an_address(stack: AsyncExitStack, tmp_path: Path, uri: str) -> None:
    assert "pw" not in await refusal(open_fetcher(stack, tmp_path, allow_private_addresses=False), uri, None)


@asynccontextmanager
async def open_metadata_server(expires_in: int) -> AsyncIterator[tuple[str, list[str]]]:
    """Its address, and the paths of its requests."""
    paths: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        paths.append((await read_request(reader)).path)
        respond(writer, "200 OK", json.dumps({"access_token": "m-1", "expires_in": expires_in}).encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token", paths


async def test_token_of_the_metadata_server_is_kept_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GCS_TOKEN", raising=False)
    for expires_in, requests in ((3600, 1), (30, 3)):
        async with open_metadata_server(expires_in) as (url, paths):
            credentials = GcsCredentials(GcsSettings(gcs_metadata_url=url))
            assert [await credentials.headers() for _ in range(3)] == [{"Authorization": "Bearer m-1"}] * 3
            assert paths == ["/token"] * requests
    with pytest.raises(TemporaryError, match="metadata server"):
        await credentials.headers()
    assert await GcsCredentials(GcsSettings(gcs_metadata_url=url)).headers() == {}, "a machine without a token"
