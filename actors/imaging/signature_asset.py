"""The picture of a signature, fetched from the address that an order names: before drawing, to see that it exists, and to sign with."""

import structlog

from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.watermark import Signature

log = structlog.get_logger()


async def fetch_signature(signature: Signature | None, tenant: str | None, claims: ClaimStore, max_bytes: int) -> bytes | None:
    """None when the signature names no picture, or one that is missing and not required; what its server forbids counts as missing.

    Raises PermanentError("signature-missing" · "asset-too-large" · "asset-refused"), and TemporaryError when its server is unavailable.
    """
    if signature is None or not signature.image_uri:
        return None
    try:
        return await claims.fetch(signature.image_uri, tenant=tenant, max_bytes=max_bytes)
    except PermanentError as error:
        if error.code not in ("asset-missing", "asset-forbidden"):
            raise
        if signature.required:
            raise missing_error(error) from error
        log.warning("signature.skipped", reason=str(error))
        return None


def missing_error(error: PermanentError) -> PermanentError:
    """The error of a required signature, with what would leave it out: a field of the order, or the setting of the queue's orders."""
    cure = "A signature with `required: false` is left out, as is one of an order from the queue without ORDER_ASSETS_REQUIRED."
    return PermanentError("signature-missing", f"{error} {cure}")
