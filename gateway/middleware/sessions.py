"""Console sessions: a signed cookie, and a CSRF token bound to it that every form must carry.

Sessions are not stored. A cookie is signed with the digest of the API key that opened it, so every gateway with that key accepts it, and
removing the key ends it. Without a login a session is anonymous and only carries the CSRF token. A logout is remembered by every gateway
that runs at that time (bus/amqp/revocations.py); one that starts later accepts a copied cookie until its session ends by itself.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from gateway.middleware.api_keys import ApiKeys

SESSION_COOKIE = "atelier_session"
CONSOLE_PATH = "/console"
DAY_SECONDS = 24 * 3600.0
MAX_REVOKED = 100_000
"""Logouts that are remembered; beyond it the oldest is forgotten."""


def is_console_path(path: str) -> bool:
    """`/` redirects to the console."""
    return path in ("/", CONSOLE_PATH) or path.startswith(f"{CONSOLE_PATH}/")


@dataclass(frozen=True)
class Session:
    """`key_name`: the name of the key that opened it; None when anonymous. `session_id` stays the same when it is renewed.

    `expires`: Unix time of the end if it is not used. `ends`: Unix time of the end in any case. `is_new`: the browser lacks the cookie.
    """

    key_name: str | None
    session_id: str
    cookie_value: str
    csrf_token: str
    expires: float
    ends: float
    is_new: bool = False


class Sessions:
    """`lifetime_seconds`: without use. `max_seconds`: since the login."""

    def __init__(self, keys: ApiKeys, lifetime_seconds: float, max_seconds: float = DAY_SECONDS) -> None:
        self._keys, self._lifetime_seconds, self._max_seconds = keys, lifetime_seconds, max_seconds
        self._process_secret = secrets.token_bytes(32)
        self._revoked = OrderedDict[str, float]()
        self.failures = keys.failures

    @property
    def login_required(self) -> bool:
        return self._keys.needed

    def login(self, key: str) -> Session | None:
        """A session for an API key; None for an unknown key."""
        name = self._keys.name_of(key) if key else None
        return self.create(name) if name else None

    def create(self, key_name: str | None = None) -> Session:
        return self._sign_session(key_name, secrets.token_hex(16), time.time() + self._max_seconds)

    def read_cookie(self, cookie_header: str) -> Session | None:
        """The session of a Cookie header; None when it is missing, malformed, wrongly signed, over or revoked, or its key was removed."""
        payload, _, signature = _cookie_value(cookie_header).partition(".")
        try:
            name, expires, session_id, ends = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (ValueError, TypeError, binascii.Error, RecursionError):
            return None
        if not (isinstance(expires, int) and isinstance(ends, int) and isinstance(session_id, str)):
            return None
        if min(expires, ends) <= time.time() or session_id in self._revoked:
            return None
        for secret in self._signing_secrets(name):
            if hmac.compare_digest(_sign(secret, "session", payload).encode(), signature.encode()):
                return Session(name, session_id, f"{payload}.{signature}", _sign(secret, "form", payload), expires, ends)
        return None

    def renew(self, session: Session) -> Session:
        """The session itself, or with a new cookie when more than half of its lifetime has passed, but not beyond its end."""
        if session.expires - time.time() >= self._lifetime_seconds / 2 or session.expires >= session.ends:
            return session
        return self._sign_session(session.key_name, session.session_id, session.ends)

    def revoke(self, session_id: str, ends: float) -> None:
        """Refuse every cookie of a session until its end (Unix time). Constant memory."""
        now = time.time()
        while self._revoked and (len(self._revoked) >= MAX_REVOKED or next(iter(self._revoked.values())) < now):
            self._revoked.popitem(last=False)
        self._revoked[session_id] = min(ends, now + self._max_seconds)

    def _sign_session(self, key_name: str | None, session_id: str, ends: float) -> Session:
        expires = min(time.time() + self._lifetime_seconds, ends)
        body = json.dumps([key_name, round(expires), session_id, round(ends)], separators=(",", ":")).encode()
        payload = base64.urlsafe_b64encode(body).decode().rstrip("=")
        secret = self._signing_secrets(key_name)[0]
        cookie_value, csrf_token = f"{payload}.{_sign(secret, 'session', payload)}", _sign(secret, "form", payload)
        return Session(key_name, session_id, cookie_value, csrf_token, round(expires), round(ends), is_new=True)

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
