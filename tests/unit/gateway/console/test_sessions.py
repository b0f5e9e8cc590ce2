"""Sessions: who a cookie says one is, and what ends it."""

import base64
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.console.sessions import COOKIE, Sessions
from gateway.keys import Keys
from gateway.settings import GatewaySettings

KIM, LEE = "k" * 20, "l" * 20


def sessions(seconds: float = 3600, **settings: Any) -> Sessions:
    return Sessions(Keys(GatewaySettings.model_validate({"api_keys": f"kim:{KIM} lee:{LEE}"} | settings)), seconds)


def test_a_key_opens_a_session_that_every_gateway_knows() -> None:
    """Nothing is kept: another process with the same keys reads the same cookie."""
    session = sessions().login(KIM)
    assert session is not None
    read = sessions().read(f"other=1; {COOKIE}={session.value}")
    assert read is not None
    assert (read.name, read.token) == ("kim", session.token)


def test_nobody_elses_key_opens_one() -> None:
    assert sessions().login("x" * 20) is None
    assert sessions().login("") is None


@pytest.mark.parametrize(
    "spoil", [lambda v: v[:-1] + ("0" if v[-1] != "0" else "1"), lambda v: "A" + v[1:], lambda v: v.partition(".")[0], lambda _: ""]
)
def test_a_changed_cookie_is_nobodys(spoil: Any) -> None:
    session = sessions().login(KIM)
    assert session is not None
    assert sessions().read(f"{COOKIE}={spoil(session.value)}") is None


def test_a_session_of_one_name_is_not_signed_by_another() -> None:
    """Whoever has a key cannot write a cookie for somebody else: each is signed with its own key."""
    mine = sessions().login(LEE)
    assert mine is not None
    body = mine.value.partition(".")[0]
    forged = base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).replace(b"lee", b"kim")).decode().rstrip("=")
    assert sessions().read(f"{COOKIE}={forged}.{mine.value.partition('.')[2]}") is None


def test_a_session_ends_in_time() -> None:
    session = sessions(seconds=-1).login(KIM)
    assert session is not None
    assert session.expires < time.time()
    assert sessions().read(f"{COOKIE}={session.value}") is None


def test_a_session_ends_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.keys.LOOK_AGAIN_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text(f"kim:{KIM}\n")
    kept = sessions(api_keys=None, api_keys_file=file)
    session = kept.login(KIM)
    assert session is not None
    assert kept.read(f"{COOKIE}={session.value}") is not None
    file.write_text(f"lee:{LEE}\n")
    assert kept.read(f"{COOKIE}={session.value}") is None


def test_a_session_in_use_lasts_longer() -> None:
    kept = sessions(seconds=100)
    session = kept.login(KIM)
    assert session is not None
    assert kept.renewed(session) is session
    old = sessions(seconds=40).login(KIM)
    assert old is not None
    assert kept.renewed(old).expires > old.expires


def test_a_cookie_that_is_no_cookie_is_nobodys() -> None:
    for header in ("", ";;;", f"{COOKIE}=", f"{COOKIE}=....", f"{COOKIE}=W10.00", f'{COOKIE}="\\"', f"{COOKIE}=bnVsbA.00"):
        assert sessions().read(header) is None
