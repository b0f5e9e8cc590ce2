"""Reports on S3 servers other than Amazon's: headers they refuse, forms they answer in, rights they do not give, and what an error says."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from bus.errors import PermanentError, TemporaryError
from bus.observability.probes import probe_store
from bus.storage.claim_store import open_claim_store
from bus.storage.prefix_sync import sync_prefix
from tests.support.strict_s3 import (
    PICTURE,
    Answer,
    Request,
    error,
    failure_of_write,
    open_strict_s3,
    refuse,
    use,
    write_and_read,
)


def no_checksum_headers(request: Request) -> Answer | None:
    """As Backblaze B2 and older servers do."""
    refused = [name for name in request.headers if name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer"))]
    encoded = "aws-chunked" in request.headers.get("content-encoding", "")
    if not refused and not encoded:
        return None
    name = refused[0] if refused else "content-encoding: aws-chunked"
    return error(400, "InvalidArgument", f"Unsupported header '{name}' received for this API call.")


async def test_server_that_refuses_checksum_headers_stores_pictures() -> None:
    """iterate-ch/cyberduck #16107, io7m-com/exfilac #35, home-assistant/core #143995, boto/boto3 #4401, langgenius/dify #35117: a store
    answers InvalidArgument to `x-amz-checksum-sha256` and `x-amz-sdk-checksum-algorithm`. Pictures are written and checked without them.
    """
    with open_strict_s3(no_checksum_headers) as server:
        await write_and_read(server.settings())
        assert await probe_store(server.settings()) is None
    assert all("content-md5" in request.headers for request in server.requests if request.method == "PUT")


async def test_wanted_checksum_headers_are_sent_and_their_refusal_names_header_setting_and_server() -> None:
    """matrix-org/synapse-s3-storage-provider #128: who wants the headers sets the SDK's own variable; the refusal then says what to do."""
    with open_strict_s3(no_checksum_headers) as server:
        text = await failure_of_write(server.settings(aws_request_checksum_calculation="WHEN_SUPPORTED"))
        for part in ("x-amz-checksum-sha256", "InvalidArgument", "400", "PutObject", server.url, "AWS_REQUEST_CHECKSUM_CALCULATION"):
            assert part in text


async def test_variable_of_the_sdk_is_read_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """destination-earth/DestinE_ESA_GFTS #149 and ansible/galaxy-operator #262 set it in capital letters."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_SUPPORTED")
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "WHEN_REQUIRED")
    with open_strict_s3() as server:
        async with open_claim_store(server.settings()) as claims:
            await claims.write(PICTURE, media_type="image/png", tenant=None)
    assert "x-amz-checksum-sha256" in server.requests[0].headers


async def test_picture_is_written_where_no_100_continue_is_sent() -> None:
    """aio-libs/aiobotocore #1001, boto/botocore #3613, marin-community/marin #6719: the client waits for `100 Continue`, which this server
    or a proxy before it never sends, until the time-out. The header is not sent.
    """
    with open_strict_s3() as server:
        async with asyncio.timeout(4):
            await write_and_read(server.settings())
    assert not any("expect" in request.headers for request in server.requests)


async def test_bucket_with_object_lock_gets_a_content_md5() -> None:
    """s3tools/s3cmd #1177, minio/minio #16480, aws/aws-sdk-php #1694: a bucket with Object Lock refuses a PUT without Content-MD5."""

    def locked(request: Request) -> Answer | None:
        if request.method == "PUT" and "content-md5" not in request.headers:
            return error(400, "InvalidRequest", "Content-MD5 HTTP header is required for Put Object requests with Object Lock parameters")
        return None

    with open_strict_s3(locked, refuse(403, "AccessDenied", "object is locked", "DELETE")) as server:
        await write_and_read(server.settings())
        assert await probe_store(server.settings()) is None, "what cannot be deleted is only logged"


@pytest.mark.parametrize(
    "etag",
    [
        pytest.param(lambda data: hashlib.md5(data).hexdigest(), id="without-quotes"),
        pytest.param(lambda data: f'W/"{hashlib.md5(data).hexdigest()}"', id="weak"),
        pytest.param(lambda data: f'"{hashlib.md5(data).hexdigest().upper()}"', id="capitals"),
        pytest.param(lambda data: f'"{hashlib.md5(data).hexdigest()}-1"', id="of-parts"),
        pytest.param(lambda data: '"d12b33cb96e431763224615d904dc600"', id="encrypted"),
        pytest.param(lambda data: '"x"', id="no-checksum"),
        pytest.param(lambda data: "", id="none"),
    ],
)
async def test_any_form_of_etag_is_accepted_for_what_was_stored(etag: Any) -> None:
    """aws/aws-sdk-js #2065 and aws/aws-cli #1026: an ETag need not be an MD5. What it does not prove is read back."""
    with open_strict_s3(etag=etag) as server:
        await write_and_read(server.settings())


async def test_object_that_differs_from_what_was_written_is_noticed_without_checksum_headers() -> None:
    """A server that answers 200 and stores something else: the bytes are compared, by their ETag or by reading them back."""

    def swapped(request: Request) -> Answer | None:
        if request.method == "PUT":
            server.objects[request.key] = PICTURE[::-1], "image/png"
            return Answer(200, headers={"ETag": server.etag(request.body)})
        return None

    with open_strict_s3(swapped) as server:
        async with open_claim_store(server.settings()) as claims:
            with pytest.raises(TemporaryError, match="does not hold what was written"):
                await claims.write(PICTURE, media_type="image/png", tenant=None)
        assert "does not hold what was written" in str(await probe_store(server.settings()))


async def test_answers_without_content_length_are_read_and_bounded(tmp_path: Path) -> None:
    """scireum/s3ninja #251 answers in chunks, without a length: bytes are read and counted."""
    with open_strict_s3(chunked=True) as server:
        await write_and_read(server.settings())
        server.objects["loras/a"] = PICTURE * 10, "x"
        settings = server.settings(store_url=tmp_path.as_uri(), asset_buckets=("media",))
        async with open_claim_store(settings) as claims:
            assert await claims.fetch("s3://media/loras/a", tenant="shop", max_bytes=len(PICTURE) * 10) == PICTURE * 10
            with pytest.raises(PermanentError, match="larger than"):
                await claims.fetch("s3://media/loras/a", tenant="shop", max_bytes=len(PICTURE))


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (error(403, "InvalidAccessKeyId", "The key does not exist"), ["InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"]),
        (error(403, "SignatureDoesNotMatch", "The signature does not match"), ["AWS_SECRET_ACCESS_KEY", "proxy"]),
        (error(403, "RequestTimeTooSkewed", "The difference is too large"), ["clock"]),
        (error(400, "ExpiredToken", "The provided token has expired."), ["AWS_SESSION_TOKEN"]),
        (error(404, "NoSuchBucket", "The bucket does not exist"), ["NoSuchBucket", "STORE_URL"]),
        (error(403, "AccessDenied", "Access Denied"), ["AccessDenied", "right"]),
        (
            error(400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-nl-1'", Region="eu-nl-1"),
            ["eu-nl-1", "AWS_S3_REGION_NAME"],
        ),
        (error(403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access."), ["AWS_S3_ADDRESSING_STYLE"]),
        (error(411, "MissingContentLength", "You must provide the Content-Length HTTP header."), ["411", "MissingContentLength"]),
        (error(501, "NotImplemented", "A header you provided implies functionality that is not implemented"), ["501", "NotImplemented"]),
        (Answer(403, b"<html><body>Zscaler says no</body></html>", {"Content-Type": "text/html"}), ["403", "PutObject"]),
        (Answer(400, b"no xml at all"), ["400", "PutObject"]),
    ],
)
async def test_refusal_names_setting_server_operation_and_code(answer: Answer, parts: list[str]) -> None:
    """s3fs-fuse/s3fs-fuse #1186 (region), peak/s5cmd #518 (style), jschneier/django-storages #1104 (a bare 403), s3tools/s3cmd #331 (HTML
    of a proxy): the error says which operation at which server was refused, why, and what mends it.
    """
    with open_strict_s3(lambda request: answer if request.method == "PUT" else None) as server:
        text = await failure_of_write(server.settings())
    for part in [*parts, "PutObject", server.url, "AWS_S3_ENDPOINT_URL"]:
        assert part in text


async def test_region_of_a_redirect_is_named() -> None:
    """cloudposse/terraform-aws-cloudfront-s3-cdn #225: 301 with the region in a header alone, as to a HEAD."""

    def elsewhere(request: Request) -> Answer:
        return Answer(301, b"", {"x-amz-bucket-region": "eu-west-3"})

    with open_strict_s3(elsewhere) as server:
        text = str(await probe_store(server.settings()))
    assert "eu-west-3" in text
    assert "AWS_S3_REGION_NAME" in text


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"<!doctype html><p>Welcome<br>to the console", "ListObjectsV2"),
        (b"<ListBucketResult><Contents><Key>a</Key><Size>large</Size></Contents></ListBucketResult>", "is not S3's"),
        (b"<ListBucketResult><Contents><Key>a</Key><LastModified>today</LastModified></Contents></ListBucketResult>", "is not S3's"),
    ],
)
async def test_page_in_place_of_a_listing_is_an_error_of_the_store(
    body: bytes, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto/boto3 #887, boto/botocore #478, treeverse/lakeFS #1574: a wrong address answers 200 with something else, and the parser's own
    error came through.
    """
    with open_strict_s3(lambda request: Answer(200, body)) as server:
        use(monkeypatch, server)
        with pytest.raises(TemporaryError, match=part):
            await sync_prefix("s3://media/model", tmp_path / "model")


def item(key: str, data: bytes, etag: str | None = None) -> str:
    tag = f"<ETag>{etag}</ETag>" if etag else ""
    return f"<Contents><Key>{key}</Key><Size>{len(data)}</Size>{tag}</Contents>"


def listing(*items: str, truncated: bool = False) -> Answer:
    flag = "true" if truncated else "false"
    body = f"<ListBucketResult><IsTruncated>{flag}</IsTruncated>{''.join(items)}</ListBucketResult>"
    return Answer(200, body.encode(), {"Content-Type": "application/xml"})


FILES = {"model/a.json": b"{}", "model/b.bin": b"weights" * 9}


@pytest.mark.parametrize("version_2", ["refused", "ignored"])
async def test_all_objects_are_listed_where_only_the_first_version_is_known(
    version_2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scireum/s3ninja #251, findify/s3mock #59, getmoto/moto #2482: the second version of the listing is refused, or answered as truncated
    without saying how to go on. A model was then copied in part, and taken for whole.
    """

    def list_page(request: Request) -> Answer | None:
        if request.method != "GET" or request.key:
            return None
        if "list-type" in request.query and version_2 == "refused":
            return error(501, "NotImplemented")
        later = [name for name in FILES if name > request.query.get("marker", "")]
        return listing(*(item(name, FILES[name]) for name in later[:1]), truncated=len(later) > 1)

    with open_strict_s3(list_page) as server:
        server.objects |= {name: (data, "x") for name, data in FILES.items()}
        use(monkeypatch, server)
        await sync_prefix("s3://media/model", tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {"a.json", "b.bin"}


@pytest.mark.parametrize("header", ["x-amz-server-side-encryption", "x-amz-server-side-encryption-customer-algorithm"])
async def test_etag_of_an_encrypted_object_is_no_md5(header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """aws/aws-cli #1026, rustyconover/net-amazon-s3 #109, axpdev-lab/aeroftp #792: the tag has the form of an MD5, and the download was
    called corrupt, for ever.
    """
    data = b"weights" * 100

    def encrypted(request: Request) -> Answer | None:
        if request.method == "GET" and not request.key:
            return listing(item("model/w.bin", data, '"d12b33cb96e431763224615d904dc600"'))
        return Answer(200, data, {header: "aws:kms" if header.endswith("encryption") else "AES256"}) if request.method == "GET" else None

    with open_strict_s3(encrypted) as server:
        use(monkeypatch, server)
        await sync_prefix("s3://media/model", tmp_path / "model")
    assert (tmp_path / "model" / "w.bin").read_bytes() == data


async def test_copy_goes_on_where_the_server_knows_no_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server sends the whole object to a request for its rest: what is there already is skipped."""
    data = bytes(range(256)) * 40

    def whole(request: Request) -> Answer | None:
        if request.method == "GET":
            return Answer(200, data) if request.key else listing(item("model/w.bin", data))
        return None

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.bin.part").write_bytes(data[:1000])
    with open_strict_s3(whole) as server:
        use(monkeypatch, server)
        await sync_prefix("s3://media/model", tmp_path / "model")
    assert (tmp_path / "model" / "w.bin").read_bytes() == data
    assert [request.headers.get("range") for request in server.requests if request.key] == ["bytes=1000-"]
