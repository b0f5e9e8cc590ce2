"""Console sessions: a signed cookie, and a CSRF token bound to it that every form must carry.

Sessions are not stored. A cookie is signed with the digest of the API key that opened it, so every gateway with that key accepts it, and
removing the key ends it. Without a login a session is anonymous and only carries the CSRF token.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from gateway.middleware.api_keys import ApiKeys
from gateway.middleware.rate_limit import RateLimiter

SESSION_COOKIE = "atelier_session"
CONSOLE_PATH = "/console"
LOGIN_ATTEMPTS, LOGIN_WINDOW_SECONDS = 30, 60.0
"""Login rate limit of one client address."""


@dataclass(frozen=True)
class Session:
    """`key_name`: the name of the key that opened it; None when anonymous. `expires`: Unix time. `is_new`: the browser lacks the cookie."""

    key_name: str | None
    cookie_value: str
    csrf_token: str
    expires: float
    is_new: bool = False


class Sessions:
    def __init__(self, keys: ApiKeys, lifetime_seconds: float) -> None:
        self._keys, self._lifetime_seconds, self._process_secret = keys, lifetime_seconds, secrets.token_bytes(32)
        self.login_limiter = RateLimiter(LOGIN_ATTEMPTS, LOGIN_WINDOW_SECONDS)

    @property
    def login_required(self) -> bool:
        return self._keys.needed

    def login(self, key: str) -> Session | None:
        """A session for an API key; None for an unknown key."""
        name = self._keys.name_of(key) if key else None
        return self.create(name) if name else None

    def create(self, key_name: str | None = None) -> Session:
        expires = time.time() + self._lifetime_seconds
        body = json.dumps([key_name, round(expires), secrets.token_hex(8)], separators=(",", ":")).encode()
        payload = base64.urlsafe_b64encode(body).decode().rstrip("=")
        secret = self._signing_secrets(key_name)[0]
        return Session(key_name, f"{payload}.{_sign(secret, 'session', payload)}", _sign(secret, "form", payload), expires, is_new=True)

    def read_cookie(self, cookie_header: str) -> Session | None:
        """The session of a Cookie header; None when it is missing, malformed, wrongly signed or expired, or its key was removed."""
        payload, _, signature = _cookie_value(cookie_header).partition(".")
        try:
            name, expires, _ = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (ValueError, TypeError, binascii.Error):
            return None
        for secret in self._signing_secrets(name) if isinstance(expires, int) and expires > time.time() else ():
            if hmac.compare_digest(_sign(secret, "session", payload).encode(), signature.encode()):
                return Session(name, f"{payload}.{signature}", _sign(secret, "form", payload), expires)
        return None

    def renew(self, session: Session) -> Session:
        """The session itself, or a new one for the same key when more than half of its lifetime has passed."""
        return self.create(session.key_name) if session.expires - time.time() < self._lifetime_seconds / 2 else session

    def _signing_secrets(self, key_name: str | None) -> list[bytes]:
        """The digests of the named key. Anonymous: a digest of all keys, which every gateway has; without keys, this process's secret."""
        if key_name is not None:
            return self._keys.digests(key_name)
        return [hashlib.sha256(b"".join(sorted(self._keys.digests()))).digest() if self._keys.needed else self._process_secret]


def _cookie_value(header: str) -> str:
    try:
        morsel = SimpleCookie(header).get(SESSION_COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _sign(secret: bytes, purpose: str, payload: str) -> str:
    return hmac.new(secret, f"atelier console {purpose} {payload}".encode(), hashlib.sha256).hexdigest()
