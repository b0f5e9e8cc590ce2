"""Reports on how an S3 server is reached and checked: addresses, rights, credentials, authorities; and the same on a real Ceph."""

import asyncio
import socket
import ssl
import threading
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import boto3
import httpx
import pytest
from pydantic import ValidationError

from bus.errors import TemporaryError
from bus.observability.health import Health
from bus.observability.health_checks import store_check
from bus.observability.probes import probe_store
from bus.observability.settings import HealthSettings
from bus.storage.claim_store import open_claim_store
from bus.storage.s3_client import create_bucket, open_s3_client, trusted_authorities
from bus.storage.settings import StoreSettings
from contracts.claim import Claim
from tests.support.ceph_store import ACCESS_KEY, SECRET_KEY, store_settings
from tests.support.certificates import make_certificates
from tests.support.strict_s3 import (
    PICTURE,
    Answer,
    Request,
    Rule,
    error,
    failure_of_write,
    open_strict_s3,
    refuse,
    write_and_read,
)


async def test_check_writes_reads_and_deletes_a_small_object_once() -> None:
    """mozilla-services/antenna #300, depictio/depictio #990: a bucket that answers HEAD may still refuse writes. The first check writes;
    later ones ask for the bucket alone.
    """
    with open_strict_s3() as server:
        async with open_claim_store(server.settings()) as claims:
            await claims.check()
            assert [request.method for request in server.requests] == ["PUT", "GET", "DELETE"]
            assert server.requests[0].key.startswith("atelier/.checks/")
            assert not server.objects
            server.requests.clear()
            await claims.check()
            assert [request.method for request in server.requests] == ["HEAD"]
            server.rules.append(refuse(404, "NoSuchBucket", "", "HEAD"))
            with pytest.raises(TemporaryError, match="HeadBucket"):
                await claims.check()


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        (refuse(403, "AccessDenied", "no", "PUT"), ["PutObject", "AccessDenied"]),
        (refuse(403, "AccessDenied", "no", "GET"), ["GetObject", "AccessDenied"]),
        (refuse(404, "NoSuchBucket", "no", "PUT GET"), ["NoSuchBucket", "STORE_URL"]),
    ],
)
async def test_check_finds_a_missing_right(rule: Rule, parts: list[str]) -> None:
    """depictio/depictio #990, aerospike/aerospike-backup-service #558: the start says that the key may not write, or read."""
    with open_strict_s3(rule) as server:
        text = str(await probe_store(server.settings()))
        async with open_claim_store(server.settings()) as claims:
            health = str(await store_check(claims)())
    for part in [*parts, server.url]:
        assert part in text
        assert part in health


async def test_key_that_may_not_ask_for_the_bucket_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """EnterpriseDB/barman #1094, Aiven-Open/rohmu #162, remotely-save #495: HeadBucket is 403 though objects may be written and read. Not
    every probe of the health writes: once more after minutes, which shows that the right was withdrawn.
    """
    with open_strict_s3(refuse(403, "Forbidden", "", "HEAD"), refuse(403, "AccessDenied", "", "DELETE")) as server:
        async with open_claim_store(server.settings()) as claims:
            await asyncio.gather(*(claims.check() for _ in range(5)))
            await claims.check()
            assert [request.method for request in server.requests].count("PUT") == 1
            server.rules.insert(0, refuse(403, "AccessDenied", "", "PUT"))
            await claims.check()
            monkeypatch.setattr("bus.storage.s3.PROOF_SECONDS", -1.0)
            with pytest.raises(TemporaryError, match="PutObject"):
                await claims.check()


@pytest.mark.parametrize(("may_delete", "kept"), [(True, 0), (False, 1)])
async def test_failed_checks_do_not_fill_the_bucket(may_delete: bool, kept: int) -> None:
    """Each probe of the health with a key that may not read left one object more; each has the same key, and is deleted."""
    with open_strict_s3(refuse(403, "AccessDenied", "", "GET" if may_delete else "GET DELETE")) as server:
        async with open_claim_store(server.settings()) as claims:
            for _ in range(3):
                assert "GetObject" in str(await store_check(claims)())
        assert len(server.objects) == kept
        assert len({request.key for request in server.requests if request.method == "PUT"}) == 1


async def test_check_that_is_given_up_leaves_no_object_behind() -> None:
    """The probe of the health ends after `check_seconds`, while the store's response takes longer."""
    responded = threading.Event()

    def slow(request: Request) -> None:
        if request.method == "GET":
            responded.wait(5)

    with open_strict_s3(slow) as server:
        async with open_claim_store(server.settings()) as claims:
            health = Health(HealthSettings(check_seconds=0.3), checks={"store": store_check(claims)})
            assert await health.check_all() == {"store": "no response within 0.3 s"}
            assert [request.method for request in server.requests] == ["PUT", "GET", "DELETE"]
            assert not server.objects
        responded.set()


async def test_slow_down_is_tried_again() -> None:
    """A 503 SlowDown is asked again by the SDK; a lasting one is a temporary error."""
    times = [0]

    def busy(request: Request) -> Answer | None:
        times[0] += request.method == "PUT"
        return error(503, "SlowDown", "Please reduce your request rate.") if request.method == "PUT" and times[0] == 1 else None

    with open_strict_s3(busy) as server:
        await write_and_read(server.settings())
    assert times == [2]


async def test_bucket_stands_in_host_or_path_as_the_setting_says() -> None:
    """peak/s5cmd #518, treeverse/lakeFS #3490, cubeplexai/cubeplex #277: Alibaba OSS refuses the path style, which the SDK takes for every
    server of its own address; boto/boto3 #3258: the address was replaced by Amazon's.
    """
    with open_strict_s3() as server:
        port = server.url.rpartition(":")[2]
        await write_and_read(server.settings())
        assert server.requests[0].path.startswith("/media/atelier/")
        server.requests.clear()
        virtual = server.settings(AWS_S3_ENDPOINT_URL=f"http://localhost:{port}", aws_s3_addressing_style="virtual")
        async with open_claim_store(virtual) as claims:
            with suppress(TemporaryError):  # `media.localhost` need not resolve on this machine.
                await claims.write(PICTURE, media_type="image/png", tenant=None)
            claim = claim_in(virtual)
            assert (await claims.url(claim, tenant=None)).startswith(f"http://media.localhost:{port}/atelier/")
        for request in server.requests:
            assert (request.headers["host"], request.path.startswith("/atelier/")) == (f"media.localhost:{port}", True)


def claim_in(settings: StoreSettings) -> Claim:
    return Claim(uri=f"{settings.store_url}/claims/aa/a.png", sha256="a" * 64, media_type="image/png", size=1)


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("minio:9000", "https://host"),
        ("s3.eu-central-003.backblazeb2.com", "https://host"),
        ("ftp://host", "https://host"),
        ("https://user:pw@host", "without user"),
        ("https://host?x=1", "query"),
        ("https://", "https://host"),
        ("https://host:port", "https://host"),
        ("https://account.r2.example/media", "leave it out"),
    ],
)
def test_endpoint_of_another_form_is_refused_at_the_start(address: str, part: str) -> None:
    """mlflow/mlflow #1990, danielfrg/s3contents #12, aws/aws-cli #899: an address without a scheme was "Invalid endpoint" from the SDK;
    minio/minio-js #838: one that ends in the bucket.
    """
    with pytest.raises(ValidationError, match=part) as raised:
        StoreSettings(store_url="s3://media/atelier", AWS_S3_ENDPOINT_URL=address)
    assert "AWS_S3_ENDPOINT_URL" in str(raised.value)


async def test_endpoint_with_slash_or_blank_at_its_end_is_read() -> None:
    with open_strict_s3() as server:
        await write_and_read(server.settings(AWS_S3_ENDPOINT_URL=f" {server.url}/\n"))
    assert server.requests[0].path.startswith("/media/atelier/")


def test_key_without_secret_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="AWS_SECRET_ACCESS_KEY"):
        StoreSettings(store_url="s3://media", aws_access_key_id="key")


async def test_missing_credentials_are_named_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without keys the SDK asks the machine's metadata server; where nobody answers there, the error comes soon and names the settings."""
    silent = socket.create_server(("127.0.0.1", 0))
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
    with open_strict_s3() as server:
        settings = server.settings(aws_access_key_id=None, aws_secret_access_key=None, store_timeout_seconds=3.0)
        async with asyncio.timeout(8):
            assert "AWS_ACCESS_KEY_ID" in await failure_of_write(settings)
    silent.close()


async def test_private_authority_is_trusted_beside_the_public_ones(tmp_path: Path) -> None:
    """IBM/jupyterlab-s3-browser #102, treeverse/dvc #2558: a private authority for another server replaced the public ones for S3."""
    authority = make_certificates(tmp_path).authority
    with trusted_authorities(authority) as bundle:
        own, both = ssl.create_default_context(cafile=authority), ssl.create_default_context(cafile=bundle)
        assert own.get_ca_certs()[0] in both.get_ca_certs()
        assert len(both.get_ca_certs()) > 50
    assert not Path(str(bundle)).exists()


async def test_presigned_address_asks_for_no_checksum() -> None:
    """A browser must not have to send a header to read a picture."""
    with open_strict_s3() as server:
        async with open_claim_store(server.settings()) as claims:
            claim = await claims.write(PICTURE, media_type="image/png", tenant=None)
            url = await claims.url(claim, tenant=None)
            assert "checksum" not in url
            async with httpx.AsyncClient() as http:
                response = await http.get(url)
    assert (response.content, response.headers["content-type"]) == (PICTURE, "image/png")


async def test_region_of_a_new_bucket_is_named_to_amazon_alone() -> None:
    """A new bucket in another region than the first needs its name there; other servers do not know Amazon's names."""
    with open_strict_s3() as server:
        assert await create_bucket(server.settings(), "media")
    assert server.requests[0].body == b""


async def test_check_and_errors_on_ceph(ceph_endpoint: str) -> None:
    """The same on a real server: the check leaves nothing behind; wrong keys, bucket and rights are named."""
    settings = store_settings(ceph_endpoint)
    assert await probe_store(StoreSettings(**settings)) is None
    client = boto3.client("s3", endpoint_url=ceph_endpoint, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name="x")
    assert client.list_objects_v2(Bucket="gallery")["KeyCount"] == 0
    for changes, part in [
        ({"aws_access_key_id": "other"}, "InvalidAccessKeyId"),
        ({"aws_secret_access_key": "other"}, "SignatureDoesNotMatch"),
        ({"store_url": "s3://elsewhere/atelier"}, "NoSuchBucket"),
    ]:
        text = str(await probe_store(StoreSettings(**(settings | changes))))
        assert part in text
        assert ceph_endpoint in text


@pytest.mark.parametrize("region", ["us-east-1", "default", "eu-central-003", None])
async def test_any_region_and_checksum_use_work_on_ceph(ceph_endpoint: str, region: str | None) -> None:
    settings = store_settings(ceph_endpoint) | {"AWS_S3_REGION_NAME": region}
    for use in ("when_required", "when_supported"):
        await write_and_read(StoreSettings(**settings, aws_request_checksum_calculation=use))


async def test_keys_with_blank_plus_and_letters_of_any_script_are_fetched_from_ceph(ceph_endpoint: str, tmp_path: Path) -> None:
    settings = store_settings(ceph_endpoint) | {"store_url": tmp_path.as_uri(), "asset_buckets": ("gallery",)}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_s3_client(StoreSettings(**settings)))
        claims = await stack.enter_async_context(open_claim_store(StoreSettings(**settings)))
        for key in ("a b", "a+b", "가/Ünï %20", "x=1&y;z", "~tilde(1)!*'"):
            await client.put_object(Bucket="gallery", Key=key, Body=key.encode())
            assert await claims.fetch(f"s3://gallery/{key}", tenant="shop", max_bytes=100) == key.encode()
