"""Keys and checksums of objects in a claim store, the same in a folder and in a bucket.

A key of the installation itself is `claims/…`, `generated/…` or a name of its own such as `generations/gen-500.png`; a key of a tenant
is the same below `tenants/<folder>/`. Only a step that generates pictures writes below `generated/`.
"""

import base64
import hashlib
import re

from bus.errors import PermanentError
from bus.storage.locations import Location
from contracts.claim import Claim

CLAIMS_PREFIX, GENERATED_PREFIX, TENANTS_PREFIX = "claims/", "generated/", "tenants/"
RESERVED_FOLDERS = frozenset({"claims", "generated", "tenants"})
EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "application/json": "json",
    "application/pdf": "pdf",
    "text/plain": "txt",
}
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~+=-]*")
GENERATED_KEY = re.compile(r"(tenants/[a-z0-9_-]+/)?generated/")
PLAIN_FOLDER = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
HASHED_FOLDER_PREFIX = "sha256-"


def tenant_prefix(tenant: str | None) -> str:
    """`tenants/<folder>/`, another one for each tenant; "" for the installation itself.

    The folder is the name where that is plain and in lower case, else a hash of it: a name can neither leave the folder `tenants/`, nor
    be another tenant's on a file system without upper case.
    """
    if tenant is None:
        return ""
    plain = PLAIN_FOLDER.fullmatch(tenant) and not tenant.startswith(HASHED_FOLDER_PREFIX)
    folder = tenant if plain else HASHED_FOLDER_PREFIX + sha256_hex(tenant.encode("utf-8", "surrogatepass"))
    return f"{TENANTS_PREFIX}{folder}/"


def claim_key(sha256: str, media_type: str, *, tenant: str | None, generated: bool = False) -> str:
    """`claims/ab/abcdef….png`, or `generated/…`, in the tenant's folder: the same bytes have the same key."""
    folder = GENERATED_PREFIX if generated else CLAIMS_PREFIX
    return f"{tenant_prefix(tenant)}{folder}{sha256[:2]}/{sha256}.{EXTENSIONS.get(media_type, 'bin')}"


def is_safe(key: str) -> bool:
    """Whether the key is one or more plain names joined by `/`: it means the same to every file system and server."""
    return all(SAFE_NAME.fullmatch(name) for name in key.split("/"))


def put_key(key: str, tenant: str | None) -> str:
    """The key in the tenant's folder. Raises PermanentError("key-refused") for one that leaves it, or lies in a folder of the store."""
    if not is_safe(key) or len(key) > 512 or key.partition("/")[0].lower() in RESERVED_FOLDERS:
        folders = ", ".join(sorted(RESERVED_FOLDERS))
        raise PermanentError("key-refused", f"The key {key[:200]!r} is not plain names joined by '/', or begins with one of {folders}.")
    return tenant_prefix(tenant) + key


def may_read(key: str, tenant: str | None, *, sha256: str = "", recorded: bool = False) -> bool:
    """Whether a step that acts for the tenant may read the key. The installation itself (None) may read all.

    Outside its folder a tenant reads the claims with this sha256 that were written before there were folders. `recorded`: the address is
    from the ledger or the source database, not from a message; then it reads all that is in no tenant's folder.
    """
    if tenant is None:
        return True
    if not is_safe(key):
        return False
    legacy_claim = bool(sha256) and key.startswith(f"{CLAIMS_PREFIX}{sha256[:2]}/{sha256}.")
    return key.startswith(tenant_prefix(tenant)) or legacy_claim or (recorded and not key.lower().startswith(TENANTS_PREFIX))


def readable_key(location: Location, claim: Claim, tenant: str | None, recorded: bool = False) -> str:
    """The claim's key in the store. Raises PermanentError("claim-refused") where `may_read` does not allow it."""
    key = location.key_of(claim.uri)
    if key is None:
        raise PermanentError(
            "claim-refused", f"{claim.uri[:200]!r} is not in this store, {location.uri}. Do all actors use the same STORE_URL?"
        )
    if not may_read(key, tenant, sha256=claim.sha256, recorded=recorded):
        raise PermanentError("claim-refused", f"{claim.uri[:200]!r} is not a claim of the tenant {tenant!r}, for whom this step acts.")
    return key


def is_generated_key(key: str, tenant: str | None) -> bool:
    """Whether only a step that generates pictures can have written the key."""
    return may_read(key, tenant) and bool(GENERATED_KEY.match(key))


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


def md5_hex(data: bytes) -> str:
    """As a server's ETag."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def md5_base64(data: bytes) -> str:
    """As the header `Content-MD5`."""
    return base64.b64encode(bytes.fromhex(md5_hex(data))).decode()
