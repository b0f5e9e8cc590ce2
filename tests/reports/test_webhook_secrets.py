"""A webhook secret as the tools of others write it: the same key, or a refusal at the start; never a start after which every call fails."""

import base64
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook as StandardWebhook

from actors.settings import WebhookSettings
from actors.webhooks.signature import build_signature_headers
from ops.cli import main

ROOT = Path(__file__).parents[2]
KEY = bytes(range(200, 232))
"""Its base64 has the characters that differ between the alphabets, and padding."""
STANDARD, URL_SAFE = base64.b64encode(KEY).decode(), base64.urlsafe_b64encode(KEY).decode()
CURE = 'make one with `echo "whsec_$(openssl rand -base64 32)"`'


def verify(secret: str, receiver: str) -> Any:
    """Sign with a secret as it stands in the environment; the body as the receiver's library reads it with its own. Raises when that
    does not verify.
    """
    configured = WebhookSettings(webhook_secret=SecretStr(secret)).webhook_secret
    assert configured is not None
    body = json.dumps({"generation_id": 7}).encode()
    headers = build_signature_headers("msg_1", int(datetime.now(UTC).timestamp()), body, configured.get_secret_value())
    return StandardWebhook(receiver).verify(body, headers)


@pytest.mark.parametrize(
    "written",
    [
        f"whsec_{STANDARD}",
        f"whsec_{STANDARD.rstrip('=')}",
        f"whsec_{URL_SAFE}",
        f"whsec_{URL_SAFE.rstrip('=')}",
        STANDARD,
        STANDARD.rstrip("="),
        f"v1,whsec_{STANDARD}",
        f"whsec_{STANDARD}\r\n",
        f"\ufeffwhsec_{STANDARD}",
        f"whsec_{STANDARD}\nwhsec_{base64.b64encode(KEY[::-1]).decode()}\n",
    ],
)
def test_each_form_of_a_secret_is_the_same_key(written: str) -> None:
    """wrzonance/WrzDJ #276: 43 characters without padding. routecraft #700: the unpadded form is the same key.
    standard-webhooks/standard-webhooks #235: a service prints `v1,whsec_…`.
    """
    assert verify(written, f"whsec_{STANDARD}") == {"generation_id": 7}


@pytest.mark.parametrize("length", [24, 32, 48, 64])
def test_each_length_of_the_standard_is_accepted(length: int) -> None:
    secret = f"whsec_{base64.b64encode(bytes(length)).decode()}"
    assert verify(secret, secret) == {"generation_id": 7}


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("my-webhook-secret", "it is not whsec_ followed by base64"),
        ("correct horse battery staple", "secret 1 of 4 "),
        ("whsec_", "it is not whsec_ followed by base64"),
        ("whsec_xyz!", "it is not whsec_ followed by base64"),
        ("whsec_!!!!", "it is not whsec_ followed by base64"),
        (f"whsec_{STANDARD[:41]}", "it is not whsec_ followed by base64: a character is missing"),
        ("whsec_c2hvcnQ=", "it has a key of 5 bytes, and not of 24 to 64"),
        (f"whsec_{base64.b64encode(bytes(65)).decode()}", "it has a key of 65 bytes"),
        (f"whsec_{STANDARD} whsec_short", "secret 2 of 2 "),
        (f"polar_whs_{STANDARD}", "it is not whsec_ followed by base64"),
        (f'"whsec_{STANDARD}"', "it is not whsec_ followed by base64"),
        (f"whsec_{STANDARD[:20]}={STANDARD[20:]}", "it is not whsec_ followed by base64"),
    ],
)
def test_secret_that_cannot_sign_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], written: str, reason: str
) -> None:
    """harshdwivediiiii/pathfinder-ai #2304: found at the first webhook only. openai/openai-node #1887, corsairdev/corsair #1024: what is no
    base64 becomes a key of few bytes, or of none. rmyndharis/OpenWA #1326: a short key. polarsource/polar #13522: another prefix.
    """
    monkeypatch.setattr("bus.observability.logs.configure_logging", lambda: None)
    monkeypatch.setenv("AMQP_URL", "amqp://127.0.0.1:1/")
    monkeypatch.setenv("STORE_URL", "file:///nowhere")
    monkeypatch.setenv("WEBHOOK_SECRET", written)
    assert main(["run", "image_generation"]) == 1
    error = capsys.readouterr().err
    assert f"WEBHOOK_SECRET: {reason}" in error
    assert CURE in error
    assert written == "whsec_" or written not in error


def test_worker_with_a_broker_does_not_start_with_plain_words(amqp_url: str, store_folder: Path) -> None:
    """harshdwivediiiii/pathfinder-ai #2304: no order is taken that would only fail."""
    environment = os.environ | {"AMQP_URL": amqp_url, "STORE_URL": store_folder.as_uri(), "WEBHOOK_SECRET": "my-webhook-secret"}
    command = [sys.executable, "-m", "ops.cli", "run", "webhook"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"WEBHOOK_SECRET: it is not whsec_ followed by base64: {CURE}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "my-webhook-secret" not in done.stderr + done.stdout


def test_secret_of_the_cure_works() -> None:
    """OpenSSL's own line ends with a line feed."""
    secret = f"whsec_{base64.encodebytes(KEY).decode()}"
    assert verify(secret, secret.strip()) == {"generation_id": 7}
