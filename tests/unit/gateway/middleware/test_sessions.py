"""Console sessions: what a cookie must be to be accepted, renewal and expiry."""

import base64
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.middleware import sessions as sessions_module
from gateway.middleware.api_keys import ApiKeys
from gateway.middleware.sessions import SESSION_COOKIE, Session, Sessions
from gateway.settings import GatewaySettings

KIM, LEE = "k" * 20, "l" * 20


def open_sessions(seconds: float = 3600, max_seconds: float = 7200, **settings: Any) -> Sessions:
    return Sessions(ApiKeys(GatewaySettings.model_validate({"api_keys": f"kim:{KIM} lee:{LEE}"} | settings)), seconds, max_seconds)


def read(sessions: Sessions, session: Session) -> Session | None:
    return sessions.read_cookie(f"{SESSION_COOKIE}={session.cookie_value}")


def log_in(sessions: Sessions) -> Session:
    session = sessions.login(KIM)
    assert session is not None
    return session


def test_session_is_valid_in_another_gateway_process() -> None:
    """Sessions are not stored: another process with the same keys accepts the cookie."""
    session = open_sessions().login(KIM)
    assert session is not None
    session_from_cookie = open_sessions().read_cookie(f"other=1; {SESSION_COOKIE}={session.cookie_value}")
    assert session_from_cookie is not None
    assert (session_from_cookie.key_name, session_from_cookie.csrf_token) == ("kim", session.csrf_token)


def test_unknown_key_opens_no_session() -> None:
    assert open_sessions().login("x" * 20) is None
    assert open_sessions().login("") is None


@pytest.mark.parametrize(
    "tamper", [lambda v: v[:-1] + ("0" if v[-1] != "0" else "1"), lambda v: "A" + v[1:], lambda v: v.partition(".")[0], lambda _: ""]
)
def test_tampered_cookie_is_rejected(tamper: Any) -> None:
    session = open_sessions().login(KIM)
    assert session is not None
    assert open_sessions().read_cookie(f"{SESSION_COOKIE}={tamper(session.cookie_value)}") is None


def test_session_is_bound_to_key_name() -> None:
    """A cookie is signed with its own key: the owner of one key cannot forge a cookie for another name."""
    own = open_sessions().login(LEE)
    assert own is not None
    payload, _, signature = own.cookie_value.partition(".")
    forged = (
        base64.urlsafe_b64encode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).replace(b"lee", b"kim")).decode().rstrip("=")
    )
    assert open_sessions().read_cookie(f"{SESSION_COOKIE}={forged}.{signature}") is None


def test_expired_session_is_rejected() -> None:
    session = open_sessions(seconds=-1).login(KIM)
    assert session is not None
    assert session.expires < time.time()
    assert open_sessions().read_cookie(f"{SESSION_COOKIE}={session.cookie_value}") is None


def test_session_ends_when_key_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.middleware.api_keys.RELOAD_CHECK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text(f"kim:{KIM}\n")
    sessions = open_sessions(api_keys=None, api_keys_file=file)
    session = sessions.login(KIM)
    assert session is not None
    assert sessions.read_cookie(f"{SESSION_COOKIE}={session.cookie_value}") is not None
    file.write_text(f"lee:{LEE}\n")
    assert sessions.read_cookie(f"{SESSION_COOKIE}={session.cookie_value}") is None


def test_active_session_is_renewed() -> None:
    sessions = open_sessions(seconds=100)
    session = sessions.login(KIM)
    assert session is not None
    assert sessions.renew(session) is session
    session_near_expiry = open_sessions(seconds=40).login(KIM)
    assert session_near_expiry is not None
    assert sessions.renew(session_near_expiry).expires > session_near_expiry.expires


def test_malformed_cookie_is_rejected() -> None:
    for header in (
        "",
        ";;;",
        f"{SESSION_COOKIE}=",
        f"{SESSION_COOKIE}=....",
        f"{SESSION_COOKIE}=W10.00",
        f'{SESSION_COOKIE}="\\"',
        f"{SESSION_COOKIE}=bnVsbA.00",
    ):
        assert open_sessions().read_cookie(header) is None


def test_renewed_session_ends_a_fixed_time_after_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is renewed."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    sessions = open_sessions(seconds=100, max_seconds=250)
    session, ends, renewals = log_in(sessions), now + 250, 0
    for _ in range(30):
        current = read(sessions, session)
        if current is None:
            break
        renewed = sessions.renew(current)
        renewals += renewed is not current
        session, now = renewed, now + 20
    assert renewals >= 2
    assert ends - 20 <= now <= ends + 21
    assert read(sessions, session) is None


def test_session_at_its_end_is_not_renewed_with_every_request() -> None:
    sessions = open_sessions(seconds=3600, max_seconds=60)
    session = log_in(sessions)
    assert sessions.renew(session) is session


def test_revoked_session_is_refused_with_every_cookie_it_had() -> None:
    sessions = open_sessions(seconds=100)
    other, session = log_in(sessions), log_in(sessions)
    renewed = open_sessions(seconds=400).renew(session)
    assert renewed.cookie_value != session.cookie_value
    assert read(sessions, renewed) is not None
    sessions.revoke(session.session_id, session.ends)
    assert (read(sessions, session), read(sessions, renewed)) == (None, None)
    assert read(sessions, other) is not None


def test_revocations_take_constant_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of sessions that are over anyway are forgotten first."""
    monkeypatch.setattr(sessions_module, "MAX_REVOKED", 50)
    sessions = open_sessions()
    for number in range(200):
        sessions.revoke(f"over-{number}", time.time() - 1)
    session = log_in(sessions)
    sessions.revoke(session.session_id, session.ends)
    for number in range(40):
        sessions.revoke(f"other-{number}", 1e18)
    assert read(sessions, session) is None
    assert len(sessions._revoked) <= 50


def test_cookie_of_the_former_format_is_refused() -> None:
    sessions = open_sessions()
    payload = base64.urlsafe_b64encode(f'["kim",{round(time.time()) + 900},"0011223344556677"]'.encode()).decode().rstrip("=")
    secret = sessions._signing_secrets("kim")[0]
    assert sessions.read_cookie(f"{SESSION_COOKIE}={payload}.{sessions_module._sign(secret, 'session', payload)}") is None
