"""S3 through aioboto3, which is imported only when a client is opened, and the translation of its errors.

A missing object is a permanent error; a store that is unavailable, full or denies access is a temporary one, since an operator can fix it.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from bus.errors import PermanentError, TemporaryError
from bus.storage.settings import StoreSettings

MISSING_CODES = frozenset({"NoSuchKey", "NoSuchBucket", "NotFound", "404"})
FORBIDDEN_CODES = frozenset({"AccessDenied", "Forbidden", "403"})


@asynccontextmanager
async def open_s3_client(settings: StoreSettings) -> AsyncIterator[Any]:
    """An S3 client. Without keys in the settings, the SDK looks for credentials itself (profile, container, instance)."""
    import aioboto3
    from botocore.config import Config

    secret, token = settings.aws_secret_access_key, settings.aws_session_token
    session = aioboto3.Session(
        aws_access_key_id=settings.aws_access_key_id,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        aws_session_token=token.get_secret_value() if token else None,
        region_name=settings.aws_s3_region_name,
    )
    wait = settings.store_timeout_seconds / 2  # each of two attempts
    config = Config(
        connect_timeout=min(5.0, wait), read_timeout=wait, retries={"mode": "standard", "max_attempts": 2}, signature_version="s3v4"
    )
    verify = str(settings.tls_ca_file) if settings.tls_ca_file else None
    async with session.client("s3", endpoint_url=settings.aws_s3_endpoint_url, config=config, verify=verify) as client:
        yield client


async def create_bucket(settings: StoreSettings, bucket: str) -> bool:
    """True when the bucket is new. Raises TemporaryError when the store is unavailable or denies it."""
    from botocore.exceptions import ClientError

    async with open_s3_client(settings) as client:
        with translate_s3_errors(f"creating the bucket {bucket}"):
            try:
                await client.create_bucket(Bucket=bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    return False
                raise
    return True


@contextmanager
def translate_s3_errors(
    action: str,
    *,
    on_missing: Callable[[], PermanentError] | None = None,
    on_refused: Callable[[], PermanentError] | None = None,
) -> Iterator[None]:
    """Turn the SDK's errors into TemporaryError or PermanentError. `on_missing`, `on_refused`: the error for that case, else temporary."""
    from aiohttp import ClientError as BodyError
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "nothing"))
        if on_missing and code in MISSING_CODES:
            raise on_missing() from error
        if on_refused and code in FORBIDDEN_CODES:
            raise on_refused() from error
        raise TemporaryError(f"{action}: the store responded with {code}", code="store-away") from error
    except (BotoCoreError, BodyError, OSError, TimeoutError) as error:
        raise TemporaryError(f"{action}: the store is unavailable: {str(error) or 'no response in time'}", code="store-away") from error
