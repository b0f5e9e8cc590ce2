"""The headers of Standard Webhooks 1.0 (standardwebhooks.com): id, timestamp and signature over the exact bytes sent."""

import base64
import binascii
import hashlib
import hmac

PREFIX = "whsec_"


def signed_headers(message_id: str, sent_at: int, body: bytes, secrets: str | None) -> dict[str, str]:
    """`message_id` stays the same over retries and has no dot; `sent_at` is Unix time; `secrets` is one or several, by spaces."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(sent_at)}
    if secrets:
        signed = f"{message_id}.{sent_at}.".encode() + body
        headers["webhook-signature"] = " ".join(signature(key_of(secret), signed) for secret in secrets.split())
    return headers


def signature(key: bytes, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def key_of(secret: str) -> bytes:
    """The bytes of a `whsec_<base64>` secret. Raises ValueError for any other, without telling it."""
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("WEBHOOK_SECRET is not whsec_ followed by base64") from None
