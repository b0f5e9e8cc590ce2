"""The signature of webhooks according to Standard Webhooks, and the secrets that it is made with.

A secret is `whsec_` followed by base64 of 24 to 64 bytes. Tools write it with and without padding, and in the URL-safe alphabet: all
are read as the same key.
"""

import base64
import binascii
import hashlib
import hmac
import re

from bus.secrets import SECRET_PREFIX, VERSION_PREFIX

MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64
"""As Standard Webhooks says."""
CURE = 'make one with `echo "whsec_$(openssl rand -base64 32)"`, and set it at the receiver too'
_STANDARD = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_ANY_ALPHABET = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")


def build_signature_headers(message_id: str, sent_at: int, body: bytes, secrets: str | None) -> dict[str, str]:
    """`message_id` is the same at every retry and contains no dot; `sent_at` is Unix time; `secrets`: one or more, separated by spaces."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(sent_at)}
    if secrets:
        content = f"{message_id}.{sent_at}.".encode() + body
        headers["webhook-signature"] = " ".join(sign_content(decode_secret(secret), content) for secret in secrets.split())
    return headers


def sign_content(key: bytes, content: bytes) -> str:
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def check_secrets(secrets: str) -> None:
    """Raises ValueError for the first secret that is none; the message has its position and the cure, not the secret."""
    words = secrets.split()
    for position, secret in enumerate(words, 1):
        try:
            decode_secret(secret)
        except ValueError as error:
            which = f"secret {position} of {len(words)}" if len(words) > 1 else "it"
            raise ValueError(f"{which} {error}: {CURE}") from None


def decode_secret(secret: str) -> bytes:
    """The key of a secret; the prefix may be missing where the alphabet is the usual one. Raises ValueError, without the secret."""
    secret = secret.removeprefix(VERSION_PREFIX)
    text = secret.removeprefix(SECRET_PREFIX)
    if not (_STANDARD if text == secret else _ANY_ALPHABET).fullmatch(text):
        raise ValueError("is not whsec_ followed by base64")
    text = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("is not whsec_ followed by base64: a character is missing") from None
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"has a key of {len(key)} bytes, and not of {MIN_KEY_BYTES} to {MAX_KEY_BYTES}")
    return key
