"""The errors of the S3 SDK, translated into ours: what was done, at which server, how it answered, and which setting mends it.

A missing object is a permanent error; a store that is unavailable, full or denies access is a temporary one, since an operator can fix it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bus.errors import PermanentError, TemporaryError
from bus.net.addresses import redact_uri

if TYPE_CHECKING:  # the SDK is imported only where a store is in S3
    from botocore.exceptions import ClientError

MISSING_CODES = frozenset({"NoSuchKey", "NoSuchBucket", "NotFound", "404"})
FORBIDDEN_CODES = frozenset({"AccessDenied", "Forbidden", "403"})
MESSAGE_CHARS = 300
"""Of the server's own text, which may be a page of HTML."""

KEYS_CURE = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not those of this server"
RIGHTS_CURE = "the access key needs the right to do this"
TOKEN_CURE = "AWS_SESSION_TOKEN is not valid, or no longer: a temporary access key has to be renewed"  # noqa: S105
REGION_CURE = "AWS_S3_REGION_NAME is not the bucket's region"
CLOCK_CURE = "the clock of this machine is not that of the server: set it, for example by NTP"
BUCKET_CURE = "create the bucket, or correct its name in STORE_URL or UPLOAD_URL"
CHECKSUM_CURE = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required leaves out the headers of checksums that some servers refuse"
STYLE_CURE = "AWS_S3_ADDRESSING_STYLE=virtual puts the bucket into the host name, =path into the path"
CURES = {
    "InvalidAccessKeyId": KEYS_CURE,
    "SignatureDoesNotMatch": f"{KEYS_CURE}, or a proxy changes the requests",
    "AccessDenied": RIGHTS_CURE,
    "AllAccessDisabled": RIGHTS_CURE,
    "403": f"{RIGHTS_CURE}, or the keys, the region or the clock are wrong",
    "ExpiredToken": TOKEN_CURE,
    "InvalidToken": TOKEN_CURE,
    "TokenRefreshRequired": TOKEN_CURE,
    "RequestTimeTooSkewed": CLOCK_CURE,
    "RequestExpired": CLOCK_CURE,
    "PermanentRedirect": REGION_CURE,
    "TemporaryRedirect": REGION_CURE,
    "AuthorizationHeaderMalformed": REGION_CURE,
    "IllegalLocationConstraintException": REGION_CURE,
    "301": REGION_CURE,
    "307": REGION_CURE,
    "400": f"{REGION_CURE}, or the server does not know a header",
    "NoSuchBucket": BUCKET_CURE,
    "404": BUCKET_CURE,
    "InvalidBucketName": BUCKET_CURE,
    "SecondLevelDomainForbidden": STYLE_CURE,
    "InvalidDomainName": STYLE_CURE,
    "PathStyleDomainForbidden": STYLE_CURE,
}
"""What mends an error, by its code. The response to a HEAD has no body, so that its code is the status."""


@contextmanager
def translate_s3_errors(
    action: str,
    *,
    server: str | None = None,
    on_missing: Callable[[], PermanentError] | None = None,
    on_refused: Callable[[], PermanentError] | None = None,
) -> Iterator[None]:
    """Turn the SDK's errors into TemporaryError or PermanentError.

    `server`: its address, for the message; None for Amazon's. `on_missing`, `on_refused`: the error for that case, else a temporary one.
    """
    from aiohttp import ClientError as BodyError
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        code = error_code(error)
        if on_missing and code in MISSING_CODES:
            raise on_missing() from error
        if on_refused and code in FORBIDDEN_CODES:
            raise on_refused() from error
        raise TemporaryError(f"{action}: {describe_response(error, server)}", code="store-away") from error
    except (ResponseParserError, ValueError) as error:  # The SDK's own for a number or a time that is none.
        text = f"{action}: the response of {server_name(server)} is not S3's: is it another server, or a page of a proxy?"
        raise TemporaryError(text, code="store-away") from error
    except (BotoCoreError, BodyError, OSError, TimeoutError) as error:
        text = f"{action}: the store is unavailable: {describe_failure(error)}"
        raise TemporaryError(text, code="store-away") from error


def error_code(error: "ClientError") -> str:
    return str(error.response.get("Error", {}).get("Code") or "nothing")


def describe_response(error: "ClientError", server: str | None) -> str:
    """The code, status, operation, server and text of an error response, and its cure where one is known."""
    code, document = error_code(error), error.response.get("Error", {})
    metadata = error.response.get("ResponseMetadata", {})
    text = " ".join(str(document.get("Message") or "").split())[:MESSAGE_CHARS].rstrip(".")
    cures = [CURES.get(code, "")]
    if "checksum" in text.lower() or "trailer" in text.lower():
        cures = [CHECKSUM_CURE]
    if region := document.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region"):
        cures.append(f"the server says that it is {str(region)[:40]!r}")
    head = f"the store responded with {code} ({metadata.get('HTTPStatusCode', 0)} to {error.operation_name} at {server_name(server)})"
    return "; ".join(part for part in (f"{head}: {text}" if text and text != code else head, *cures) if part)


def server_name(server: str | None) -> str:
    return f"{redact_uri(server)}, AWS_S3_ENDPOINT_URL" if server else "Amazon S3"


def describe_failure(error: Exception) -> str:
    """An error without a response. Without credentials the SDK says only that it found none."""
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"{error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    return str(error) or "no response in time"
