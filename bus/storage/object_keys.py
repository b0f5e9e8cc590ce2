"""Keys and checksums of objects in a claim store, the same in a folder and in a bucket."""

import base64
import hashlib
import re

from bus.errors import PermanentError
from contracts.claim import Claim

CLAIMS_PREFIX = "claims/"
EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "application/json": "json",
    "application/pdf": "pdf",
    "text/plain": "txt",
}
SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~+=-]*(/[A-Za-z0-9][A-Za-z0-9._~+=-]*)*")


def claim_key(sha256: str, media_type: str) -> str:
    """`claims/ab/abcdef….png`: the same bytes have the same key."""
    return f"{CLAIMS_PREFIX}{sha256[:2]}/{sha256}.{EXTENSIONS.get(media_type, 'bin')}"


def safe_key(key: str) -> str:
    """The key itself. Raises PermanentError("key-refused") for one that leaves the store, or lies among the claims."""
    if not SAFE_KEY.fullmatch(key) or len(key) > 512 or key.startswith(CLAIMS_PREFIX):
        raise PermanentError(
            "key-refused", f"The key {key[:200]!r} is not one or more plain names joined by '/', or begins with {CLAIMS_PREFIX!r}."
        )
    return key


def verify_claim(claim: Claim, data: bytes) -> bytes:
    """The data itself. Raises PermanentError("claim-corrupt") when its size or sha256 is not the claim's."""
    if len(data) != claim.size or sha256_hex(data) != claim.sha256:
        raise PermanentError("claim-corrupt", f"The bytes at {claim.uri} are not those of the claim: their sha256 differs.")
    return data


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_base64(sha256: str) -> str:
    """The hex digest as S3 writes it (`ChecksumSHA256`)."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()
