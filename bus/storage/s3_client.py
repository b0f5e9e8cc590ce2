"""S3 through aioboto3, which is imported only when a client is opened: the client, a new bucket, and bodies of bounded size."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bus.storage.s3_errors import error_code, translate_s3_errors
from bus.storage.settings import StoreSettings

CHUNK_BYTES = 1 << 20
DEFAULT_REGION = "us-east-1"


@asynccontextmanager
async def open_s3_client(settings: StoreSettings) -> AsyncIterator[Any]:
    """An S3 client. Without keys in the settings, the SDK looks for credentials itself (profile, container, instance)."""
    import aioboto3
    from botocore.config import Config
    from botocore.handlers import add_expect_header

    secret, token = settings.aws_secret_access_key, settings.aws_session_token
    session = aioboto3.Session(
        aws_access_key_id=settings.aws_access_key_id,
        aws_secret_access_key=secret.get_secret_value() if secret and settings.aws_access_key_id else None,
        aws_session_token=token.get_secret_value() if token else None,
        region_name=settings.aws_s3_region_name,
    )
    wait = settings.store_timeout_seconds / 2  # each of two attempts
    config = Config(
        connect_timeout=min(5.0, wait),
        read_timeout=wait,
        retries={"mode": "standard", "max_attempts": 2},
        signature_version="s3v4",
        s3={"addressing_style": settings.aws_s3_addressing_style},
        request_checksum_calculation=settings.aws_request_checksum_calculation,
        response_checksum_validation=settings.aws_response_checksum_validation,
    )
    with trusted_authorities(settings.tls_ca_file) as verify:
        async with session.client("s3", endpoint_url=settings.aws_s3_endpoint_url, config=config, verify=verify) as client:
            # aiohttp awaits `100 Continue` for ever, and some servers and proxies do not send it.
            client.meta.events.unregister("before-call.s3", add_expect_header)
            yield client


@contextmanager
def trusted_authorities(ca_file: Path | None) -> Iterator[str | None]:
    """A file with the public authorities and `ca_file`, since the SDK trusts one file alone. None: the SDK's choice, AWS_CA_BUNDLE too."""
    if ca_file is None:
        yield None
        return
    import certifi

    with tempfile.NamedTemporaryFile(prefix="atelier-authorities-", suffix=".pem") as bundle:
        bundle.write(Path(certifi.where()).read_bytes() + b"\n" + ca_file.read_bytes())
        bundle.flush()
        yield bundle.name


async def create_bucket(settings: StoreSettings, bucket: str) -> bool:
    """True when the bucket is new. Raises TemporaryError when the store is unavailable or denies it."""
    from botocore.exceptions import ClientError

    region = settings.aws_s3_region_name
    # Amazon wants the region named, and no other server knows Amazon's.
    named = settings.aws_s3_endpoint_url is None and region not in (None, DEFAULT_REGION)
    place = {"CreateBucketConfiguration": {"LocationConstraint": region}} if named else {}
    async with open_s3_client(settings) as client:
        with translate_s3_errors(f"creating the bucket {bucket}", server=settings.aws_s3_endpoint_url):
            try:
                await client.create_bucket(Bucket=bucket, **place)
            except ClientError as error:
                if error_code(error) in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    return False
                raise
    return True


async def read_at_most(response: dict[str, Any], limit: int) -> bytes | None:
    """The body of a `get_object`; None when it has more than `limit` bytes. A server need not say beforehand how many."""
    data = bytearray()
    async with response["Body"] as body:
        if (response.get("ContentLength") or 0) > limit:
            return None
        async for chunk in body.content.iter_chunked(CHUNK_BYTES):
            data += chunk
            if len(data) > limit:
                return None
    return bytes(data)
