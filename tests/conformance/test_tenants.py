"""Tenants in one store, a folder and a bucket: each reads and replaces its own objects alone, and the store is no source of assets."""

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from contracts.claim import Claim

PICTURE, OTHER_PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(1000), b"\x89PNG\r\n\x1a\n" + bytes(999) + b"x"
KEY = "generations/gen-7.png"


@pytest.fixture(params=["folder", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ClaimStore]:
    """A store whose settings allow every other address as an asset."""
    folder = {"store_url": (tmp_path / "store").as_uri()}
    settings = folder if request.param == "folder" else request.getfixturevalue("s3_settings")
    async with open_claim_store(StoreSettings(**settings, asset_roots=("/",), asset_buckets=("*", "gallery", "gallery/atelier"))) as claims:
        yield claims


async def code_of(call: Awaitable[Any]) -> str:
    """The code of the error; "" when there is none."""
    try:
        await call
    except PermanentError as error:
        return error.code
    return ""


def at(claim: Claim, old: str, new: str) -> Claim:
    assert old in claim.uri
    return claim.model_copy(update={"uri": claim.uri.replace(old, new)})


async def test_same_key_of_two_tenants_is_two_objects(store: ClaimStore) -> None:
    tenants = ("shop", "shop2", "Shop", "../shop", None)
    claims = [await store.put(KEY, PICTURE + str(tenant).encode(), tenant=tenant, media_type="image/png") for tenant in tenants]
    assert len({claim.uri.lower() for claim in claims}) == len(tenants)
    for tenant, claim in zip(tenants, claims, strict=True):
        assert await store.read(claim, tenant=tenant) == PICTURE + str(tenant).encode()


async def test_same_bytes_of_two_tenants_are_two_objects(store: ClaimStore) -> None:
    shop, office = [await store.write(PICTURE, tenant=tenant, media_type="image/png") for tenant in ("shop", "office")]
    assert shop.uri != office.uri
    assert await code_of(store.read(shop, tenant="office")) == "claim-refused"


async def test_objects_of_another_tenant_are_refused_by_every_method(store: ClaimStore) -> None:
    for owner in ("shop", "office2", "Office", None):
        for foreign in (
            await store.put(KEY, PICTURE, tenant=owner, media_type="image/png"),
            await store.write(PICTURE, tenant=owner, media_type="image/png", generated=True),
        ):
            for call in (store.read, store.url):
                assert await code_of(call(foreign, tenant="office")) == "claim-refused", foreign
            assert not await store.is_generated(foreign, tenant="office")
            for fetch in (store.fetch, store.fetch_recorded):
                code = await code_of(fetch(foreign.uri, tenant="office", max_bytes=10**6))
                assert code == ("" if owner is None and fetch == store.fetch_recorded else "asset-refused"), foreign


async def test_no_spelling_of_an_address_leads_into_another_folder(store: ClaimStore) -> None:
    own = await store.write(PICTURE, tenant="office", media_type="image/png")
    foreign = await store.write(PICTURE, tenant="shop", media_type="image/png")
    spellings = [
        at(own, "tenants/office/", f"tenants/office/{step}/shop/")
        for step in ("..", "../../tenants", "%2e%2e", "..%2f", "./..", "claims/../..", "/..", "\\..")
    ]
    spellings += [at(foreign, "tenants/", f"{start}tenants/") for start in ("/", "./", "x/../", "%2f", "tenants/office/../../")]
    spellings += [at(foreign, "tenants/shop/", f"{start}/shop/") for start in ("Tenants", "tenants/", "tenants/.")]
    for spelling in spellings:
        assert await code_of(store.read(spelling, tenant="office")) in ("claim-refused", "claim-missing"), spelling.uri
        assert await code_of(store.read_recorded(spelling, tenant="office")) in ("claim-refused", "claim-missing"), spelling.uri
        assert await code_of(store.fetch(spelling.uri, tenant="office", max_bytes=10**6)) in ("asset-refused", "asset-missing"), (
            spelling.uri
        )
        assert await code_of(store.fetch_recorded(spelling.uri, tenant="office", max_bytes=10**6)) in ("asset-refused", "asset-missing")


async def test_claim_of_before_the_upgrade_is_read_by_its_digest(store: ClaimStore) -> None:
    """A job that was in flight carries claims without a tenant's folder; a name that can be guessed is not one."""
    old = await store.write(PICTURE, tenant=None, media_type="image/png")
    assert await store.read(old, tenant="shop") == PICTURE
    other = await store.write(OTHER_PICTURE, tenant=None, media_type="image/png")
    assert await code_of(store.read(old.model_copy(update={"uri": other.uri}), tenant="shop")) == "claim-refused"
    uploaded = await store.put(KEY, PICTURE, tenant=None, media_type="image/png")
    assert await code_of(store.read(uploaded, tenant="shop")) == "claim-refused"


async def test_recorded_claim_of_before_the_upgrade_is_read_and_verified(store: ClaimStore) -> None:
    uploaded = await store.put(KEY, PICTURE, tenant=None, media_type="image/png")
    assert await store.read_recorded(uploaded, tenant="shop") == PICTURE
    assert await store.fetch_recorded(uploaded.uri, tenant="shop", max_bytes=10**6) == PICTURE
    assert await code_of(store.read_recorded(uploaded.model_copy(update={"sha256": "0" * 64}), tenant="shop")) == "claim-corrupt"
    for owner, code in (("shop", ""), ("office", "claim-refused")):
        claim = await store.put(KEY, PICTURE, tenant=owner, media_type="image/png")
        assert await code_of(store.read_recorded(claim, tenant="shop")) == code


async def test_installation_reads_every_object(store: ClaimStore) -> None:
    for tenant in ("shop", "../Shop", None):
        claim = await store.put(KEY, PICTURE, tenant=tenant, media_type="image/png")
        assert await store.read(claim, tenant=None) == PICTURE
        assert await store.fetch(claim.uri, tenant=None, max_bytes=10**6) == PICTURE


async def test_own_objects_are_no_assets_either(store: ClaimStore) -> None:
    """An address has no sha256: what it names may change, and it may be guessed."""
    claim = await store.put(KEY, PICTURE, tenant="shop", media_type="image/png")
    assert await code_of(store.fetch(claim.uri, tenant="shop", max_bytes=10**6)) == "asset-refused"
    assert await store.fetch_recorded(claim.uri, tenant="shop", max_bytes=10**6) == PICTURE


async def test_only_written_as_generated_is_generated(store: ClaimStore) -> None:
    for tenant in ("shop", None):
        sent = await store.write(PICTURE, tenant=tenant, media_type="image/png")
        generated = await store.write(PICTURE, tenant=tenant, media_type="image/png", generated=True)
        assert await store.read(generated, tenant=tenant) == PICTURE
        assert [await store.is_generated(claim, tenant=tenant) for claim in (sent, generated)] == [False, True]


# -- a folder alone


async def test_links_and_other_names_of_the_folder_lead_nowhere(tmp_path: Path) -> None:
    root = tmp_path / "store"
    async with open_claim_store(StoreSettings(store_url=root.as_uri(), asset_roots=("/",))) as store:
        foreign = await store.write(PICTURE, tenant="shop", media_type="image/png")
        own = await store.write(OTHER_PICTURE, tenant="office", media_type="image/png")
        (tmp_path / "alias").symlink_to(root)
        (root / "tenants" / "office" / "link").symlink_to(root / "tenants" / "shop")
        linked = at(foreign, "tenants/shop/", "tenants/office/link/")
        assert await code_of(store.read(linked, tenant="office")) == "claim-refused"
        aliased = at(foreign, "/store/", "/alias/")
        assert await code_of(store.read(aliased, tenant="office")) == "claim-refused"
        for claim in (linked, aliased, foreign, own):
            for uri in (claim.uri, claim.uri.replace("file://", "file://localhost"), claim.uri.replace("/store", "//store")):
                assert await code_of(store.fetch(uri, tenant="office", max_bytes=10**6)) == "asset-refused", uri
        assert await code_of(store.fetch(foreign.uri.replace("/store", "/store%00"), tenant="office", max_bytes=10**6)) == "asset-refused"


# -- a bucket alone


async def put_object(settings: dict[str, Any], uri: str) -> None:
    bucket, _, prefix = uri.removeprefix("s3://").rpartition("/")[0].partition("/")
    async with open_claim_store(StoreSettings(**(settings | {"store_url": f"s3://{bucket}/{prefix}"}))) as outside:
        await outside.put(uri.rpartition("/")[2], PICTURE, tenant=None, media_type="image/png")


async def test_prefix_bounds_the_store_within_its_bucket(s3_settings: dict[str, Any]) -> None:
    async with open_claim_store(StoreSettings(**s3_settings)) as store:
        claim = await store.write(PICTURE, tenant="shop", media_type="image/png")
        for uri in ("s3://gallery/atelier-other/x.png", "s3://gallery/private/x.png", "s3://gallery/private/atelier/x.png"):
            await put_object(s3_settings, uri)
            for tenant in ("shop", None):
                assert await code_of(store.read(claim.model_copy(update={"uri": uri}), tenant=tenant)) == "claim-refused"
                for fetch in (store.fetch, store.fetch_recorded):
                    assert await code_of(fetch(uri, tenant=tenant, max_bytes=10**6)) == "asset-refused", uri


@pytest.mark.parametrize(
    ("setting", "uri", "allowed"),
    [
        ("gallery/loras", "s3://gallery/loras/x.png", True),
        ("gallery/loras/", "s3://gallery/loras/x.png", True),
        ("gallery", "s3://gallery/loras/x.png", True),
        ("gallery", "s3://gallery/atelier-other/x.png", True),
        ("*", "s3://gallery/loras/x.png", True),
        ("gallery/loras", "s3://gallery/loras-other/x.png", False),
        ("gallery/loras", "s3://gallery/private/x.png", False),
        ("gallery/loras", "s3://gallery/loras/../private/x.png", False),
        ("*", "s3://gallery/private/../atelier/x.png", False),
        ("*", "s3://gallery//atelier/x.png", False),
        ("*", "s3://arn:aws:s3:us-east-1:123456789012:accesspoint:gallery/x.png", False),
    ],
)
async def test_asset_bucket_may_name_a_prefix(s3_settings: dict[str, Any], setting: str, uri: str, allowed: bool) -> None:
    for stored in ("loras", "loras-other", "private", "atelier", "atelier-other"):
        await put_object(s3_settings, f"s3://gallery/{stored}/x.png")
    async with open_claim_store(StoreSettings(**s3_settings, asset_buckets=(setting,))) as store:
        for tenant in ("shop", None):
            assert await code_of(store.fetch(uri, tenant=tenant, max_bytes=10**6)) == ("" if allowed else "asset-refused")


async def test_store_for_uploads_is_no_source_of_assets(s3_settings: dict[str, Any], tmp_path: Path) -> None:
    settings = s3_settings | {"store_url": tmp_path.as_uri(), "upload_url": "s3://gallery/public", "asset_buckets": ("*", "gallery")}
    async with open_claim_store(StoreSettings(**(settings | {"store_url": settings["upload_url"]}))) as destination:
        uploads = {
            tenant: await destination.put(KEY, PICTURE, tenant=tenant, media_type="image/png") for tenant in ("shop", "office", None)
        }
    async with open_claim_store(StoreSettings(**settings)) as store:
        for claim in uploads.values():
            assert await code_of(store.fetch(claim.uri, tenant="shop", max_bytes=10**6)) == "asset-refused"
        recorded = {
            tenant: await code_of(store.fetch_recorded(claim.uri, tenant="shop", max_bytes=10**6)) for tenant, claim in uploads.items()
        }
    assert recorded == {"shop": "", "office": "asset-refused", None: ""}
