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

from gateway.keys import Keys
from gateway.rates import Rates

COOKIE = "atelier_session"
PATH = "/console"
LOGINS, LOGIN_SECONDS = 30, 60.0
"""From one address: whoever guesses is slowed down."""


@dataclass(frozen=True)
class Session:
    """`name`: whose key opened it; None is nobody. `value`: the cookie's. `token`: what a form must bring."""

    name: str | None
    value: str
    token: str
    expires: float
    fresh: bool = False


class Sessions:
    def __init__(self, keys: Keys, seconds: float) -> None:
        self._keys, self._seconds, self._own = keys, seconds, secrets.token_bytes(32)
        self.tries = Rates(LOGINS, LOGIN_SECONDS)

    @property
    def needed(self) -> bool:
        """Whether a visitor must log in."""
        return self._keys.needed

    def login(self, key: str) -> Session | None:
        """None when nobody has this key."""
        name = self._keys.name_of(key) if key else None
        return self.begin(name) if name else None

    def begin(self, name: str | None = None) -> Session:
        expires = time.time() + self._seconds
        body = json.dumps([name, round(expires), secrets.token_hex(8)], separators=(",", ":")).encode()
        said = base64.urlsafe_b64encode(body).decode().rstrip("=")
        secret = self._secrets(name)[0]
        return Session(name, f"{said}.{_mac(secret, 'session', said)}", _mac(secret, "form", said), expires, fresh=True)

    def read(self, cookie_header: str) -> Session | None:
        """The session that a request's cookies tell of; None when there is none, it is too old, or its key is gone."""
        said, _, signature = _cookie(cookie_header).partition(".")
        try:
            name, expires, _ = json.loads(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)))
        except (ValueError, TypeError, binascii.Error):
            return None
        for secret in self._secrets(name) if isinstance(expires, int) and expires > time.time() else ():
            if hmac.compare_digest(_mac(secret, "session", said).encode(), signature.encode()):
                return Session(name, f"{said}.{signature}", _mac(secret, "form", said), expires)
        return None

    def renewed(self, session: Session) -> Session:
        """The same, or one that lasts longer when half of its time is gone."""
        return self.begin(session.name) if session.expires - time.time() < self._seconds / 2 else session

    def _secrets(self, name: str | None) -> list[bytes]:
        """Nobody's cookie is known to every gateway that has the same keys; where there are none, to this process alone."""
        if name is not None:
            return self._keys.digests(name)
        return [hashlib.sha256(b"".join(sorted(self._keys.digests()))).digest() if self._keys.needed else self._own]


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _mac(secret: bytes, purpose: str, said: str) -> str:
    return hmac.new(secret, f"atelier console {purpose} {said}".encode(), hashlib.sha256).hexdigest()
