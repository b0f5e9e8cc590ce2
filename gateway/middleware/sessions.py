"""Who looks at the console: a signed cookie, and a token bound to it that every change must bring.

Nothing is kept here: a cookie is signed with the digest of the API key that opened it, so every gateway knows it, and it ends with
its key. Where no keys are needed, and before login, a visitor is nobody: that cookie only carries the token.
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
"""From one address: whoever guesses is slowed down."""


@dataclass(frozen=True)
class Session:
    """`name`: whose key opened it; None is nobody. `value`: the cookie's. `token`: what a form must bring."""

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
        """Whether a visitor must log in."""
        return self._keys.needed

    def login(self, key: str) -> Session | None:
        """None when nobody has this key."""
        name = self._keys.name_of(key) if key else None
        return self.create(name) if name else None

    def create(self, key_name: str | None = None) -> Session:
        expires = time.time() + self._lifetime_seconds
        body = json.dumps([key_name, round(expires), secrets.token_hex(8)], separators=(",", ":")).encode()
        said = base64.urlsafe_b64encode(body).decode().rstrip("=")
        secret = self._signing_secrets(key_name)[0]
        return Session(key_name, f"{said}.{_sign(secret, 'session', said)}", _sign(secret, "form", said), expires, is_new=True)

    def read_cookie(self, cookie_header: str) -> Session | None:
        """The session that a request's cookies tell of; None when there is none, it is too old, or its key is gone."""
        said, _, signature = _cookie_value(cookie_header).partition(".")
        try:
            name, expires, _ = json.loads(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)))
        except (ValueError, TypeError, binascii.Error):
            return None
        for secret in self._signing_secrets(name) if isinstance(expires, int) and expires > time.time() else ():
            if hmac.compare_digest(_sign(secret, "session", said).encode(), signature.encode()):
                return Session(name, f"{said}.{signature}", _sign(secret, "form", said), expires)
        return None

    def renew(self, session: Session) -> Session:
        """The same, or one that lasts longer when half of its time is gone."""
        return self.create(session.key_name) if session.expires - time.time() < self._lifetime_seconds / 2 else session

    def _signing_secrets(self, key_name: str | None) -> list[bytes]:
        """Nobody's cookie is known to every gateway that has the same keys; where there are none, to this process alone."""
        if key_name is not None:
            return self._keys.digests(key_name)
        return [hashlib.sha256(b"".join(sorted(self._keys.digests()))).digest() if self._keys.needed else self._process_secret]


def _cookie_value(header: str) -> str:
    try:
        found = SimpleCookie(header).get(SESSION_COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _sign(secret: bytes, purpose: str, payload: str) -> str:
    return hmac.new(secret, f"atelier console {purpose} {payload}".encode(), hashlib.sha256).hexdigest()
