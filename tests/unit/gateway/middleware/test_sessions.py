"""Sessions: who a cookie says one is, and what ends it."""

import base64
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.middleware.api_keys import ApiKeys
from gateway.middleware.sessions import SESSION_COOKIE, Sessions
from gateway.settings import GatewaySettings

KIM, LEE = "k" * 20, "l" * 20


def sessions(seconds: float = 3600, **settings: Any) -> Sessions:
    return Sessions(ApiKeys(GatewaySettings.model_validate({"api_keys": f"kim:{KIM} lee:{LEE}"} | settings)), seconds)


def test_session_is_valid_at_every_gateway() -> None:
    """Nothing is kept: another process with the same keys reads the same cookie."""
    session = sessions().login(KIM)
    assert session is not None
    read = sessions().read_cookie(f"other=1; {SESSION_COOKIE}={session.cookie_value}")
    assert read is not None
    assert (read.key_name, read.csrf_token) == ("kim", session.csrf_token)


def test_unknown_key_opens_no_session() -> None:
    assert sessions().login("x" * 20) is None
    assert sessions().login("") is None


@pytest.mark.parametrize(
    "spoil", [lambda v: v[:-1] + ("0" if v[-1] != "0" else "1"), lambda v: "A" + v[1:], lambda v: v.partition(".")[0], lambda _: ""]
)
def test_tampered_cookie_is_rejected(spoil: Any) -> None:
    session = sessions().login(KIM)
    assert session is not None
    assert sessions().read_cookie(f"{SESSION_COOKIE}={spoil(session.cookie_value)}") is None


def test_session_is_bound_to_key_name() -> None:
    """Whoever has a key cannot write a cookie for somebody else: each is signed with its own key."""
    mine = sessions().login(LEE)
    assert mine is not None
    body = mine.cookie_value.partition(".")[0]
    forged = base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).replace(b"lee", b"kim")).decode().rstrip("=")
    assert sessions().read_cookie(f"{SESSION_COOKIE}={forged}.{mine.cookie_value.partition('.')[2]}") is None


def test_session_expires() -> None:
    session = sessions(seconds=-1).login(KIM)
    assert session is not None
    assert session.expires < time.time()
    assert sessions().read_cookie(f"{SESSION_COOKIE}={session.cookie_value}") is None


def test_session_ends_when_key_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.middleware.api_keys.LOOK_AGAIN_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text(f"kim:{KIM}\n")
    kept = sessions(api_keys=None, api_keys_file=file)
    session = kept.login(KIM)
    assert session is not None
    assert kept.read_cookie(f"{SESSION_COOKIE}={session.cookie_value}") is not None
    file.write_text(f"lee:{LEE}\n")
    assert kept.read_cookie(f"{SESSION_COOKIE}={session.cookie_value}") is None


def test_active_session_is_renewed() -> None:
    kept = sessions(seconds=100)
    session = kept.login(KIM)
    assert session is not None
    assert kept.renew(session) is session
    old = sessions(seconds=40).login(KIM)
    assert old is not None
    assert kept.renew(old).expires > old.expires


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
        assert sessions().read_cookie(header) is None
