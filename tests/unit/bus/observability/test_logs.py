"""Logs: JSON where nobody looks, colours on a terminal; secrets and prompts in neither."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from bus.observability.logs import mask_value

ROOT = Path(__file__).parents[3]
PROMPT = "a portrait of my neighbour"
PROGRAM = f"""
import logging, structlog
from bus.observability.logs import open_logs
open_logs()
structlog.contextvars.bind_contextvars(request_id="r-1")
log = structlog.get_logger()
log.info("order.seen", job_id="j-1", prompt="{PROMPT}", amqp_url="amqp://me:hush@host:5672/", api_key="hush", nested={{"token": "hush"}})
logging.getLogger("library").warning("Authorization: Bearer hush-hush-hush and password=hush %s", "postgresql://me:hush@host/db")
try:
    secret_inside = "hush"
    raise ValueError("could not reach amqp://me:hush@host:5672/")
except ValueError:
    log.exception("order.failed")
"""


def test_logs_are_json_without_secrets_when_not_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)

    seen, library, failed = (json.loads(line) for line in done.stderr.splitlines())
    assert (seen["event"], seen["level"], seen["job_id"], seen["request_id"]) == ("order.seen", "info", "j-1", "r-1")
    assert seen["prompt"] == f"*** ({len(PROMPT)} characters)"
    assert seen["amqp_url"] == "amqp://me:***@host:5672/"
    assert (seen["api_key"], seen["nested"]) == ("***", {"token": "***"})
    assert (library["logger"], library["level"]) == ("library", "warning")
    assert "ValueError" in failed["exception"]
    assert "hush" not in done.stderr
    assert PROMPT not in done.stderr


def test_logs_are_colored_without_secrets_on_terminal() -> None:
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm"}
    done = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stderr=theirs, env=environment)
    assert done.wait(30) == 0
    os.close(theirs)
    said = ""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        if not data:
            break
        said += data.decode()
    os.close(ours)
    assert "\x1b[" in said
    assert "order.seen" in said
    assert "hush" not in said
    assert PROMPT not in said


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("INTERNAL_API_TOKEN", "abc", "***"),
        ("tokens", 7, 7),
        ("prompt_tokens", 7, 7),
        ("prompt_tags", ["a", "b"], "*** (10 characters)"),
        ("slip", {"variables": {"prompt": "four"}}, {"variables": {"prompt": "*** (4 characters)"}}),
        ("cause", "Input should be a string [type=string_type, input_value='a neighbour', input_type=str]", None),
        ("text", None, None),
    ],
)
def test_values_are_masked_by_name_at_any_depth(name: str, value: object, shown: object) -> None:
    said = mask_value(name, value)

    if name == "cause":
        assert "neighbour" not in str(said)
    else:
        assert said == shown
