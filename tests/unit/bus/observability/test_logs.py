"""Logs: JSON lines, or colours on a terminal; secrets and prompts in neither."""

import json
import os
import pty
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bus.masking import MAX_TEXT_CHARS, mask_text
from bus.observability.logs import MAX_ITEMS, mask_value

ROOT = Path(__file__).parents[4]
PROMPT = "a portrait of my neighbour"
PROGRAM = f"""
import logging, structlog
from bus.observability.logs import configure_logging
configure_logging()
structlog.contextvars.bind_contextvars(request_id="r-1")
log = structlog.get_logger()
log.info("step.begun", job_id="j-1", prompt="{PROMPT}", amqp_url="amqp://me:pw01@host:5672/", api_key="pw01", nested={{"token": "pw01"}})
logging.getLogger("library").warning("Authorization: Bearer pw01-pw01-pw01 and password=pw01 %s", "postgresql://me:pw01@host/db")
try:
    secret_inside = "pw01"
    raise ValueError("could not reach amqp://me:pw01@host:5672/")
except ValueError:
    log.exception("step.failed")
"""


def test_logs_are_json_without_secrets_when_not_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)

    received, library, failed = (json.loads(line) for line in done.stderr.splitlines())
    assert (received["event"], received["level"], received["job_id"], received["request_id"]) == ("step.begun", "info", "j-1", "r-1")
    assert received["prompt"] == f"*** ({len(PROMPT)} characters)"
    assert received["amqp_url"] == "amqp://me:***@host:5672/"
    assert (received["api_key"], received["nested"]) == ("***", {"token": "***"})
    assert (library["logger"], library["level"]) == ("library", "warning")
    assert "ValueError" in failed["exception"]
    assert "pw01" not in done.stderr
    assert PROMPT not in done.stderr


def test_logs_are_colored_without_secrets_on_terminal() -> None:
    terminal, program_side = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm"}
    done = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stderr=program_side, env=environment)
    assert done.wait(30) == 0
    os.close(program_side)
    output = ""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        output += data.decode()
    os.close(terminal)
    assert "\x1b[" in output
    assert "step.begun" in output
    assert "pw01" not in output
    assert PROMPT not in output


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
    masked = mask_value(name, value)

    if name == "cause":
        assert "neighbour" not in str(masked)
    else:
        assert masked == shown


@pytest.mark.parametrize("text", ["://a:" * 12_000, "/x?token=" * 7_000, "bearer " * 9_000, "input_value='" * 5_000, "x" * 30_000_000])
def test_long_text_is_cut_before_it_is_masked(text: str) -> None:
    started = time.process_time()
    masked = mask_text(text)
    assert time.process_time() - started < 0.5
    assert len(masked) < 2 * MAX_TEXT_CHARS


@pytest.mark.parametrize("text", [" " * 9000 + "a=b" * 4000, "a=b" * 4000 + " " * 9000, " " * 20_000 + "a=b"])
def test_text_with_half_of_it_blank_is_logged(text: str) -> None:
    assert len(mask_text(text)) < 2 * MAX_TEXT_CHARS


def test_half_a_secret_in_a_text_without_blanks_is_not_logged() -> None:
    secret = '"password":"' + "Z" * 40 + '"'
    text = "{" + '"a":1,' * 2000 + secret
    text += "," + "b" * (MAX_TEXT_CHARS // 2 - 20) + "}"
    assert len(text) > MAX_TEXT_CHARS
    assert "ZZZ" not in mask_text(text)


def test_large_and_deep_values_are_cut() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"k": deep}
    assert len(str(mask_value("x", deep))) < 500
    assert len(mask_value("x", list(range(1_000_000)))) == MAX_ITEMS
    assert len(mask_value("x", {str(number): 1 for number in range(5000)})) == MAX_ITEMS


def test_half_a_secret_at_the_cut_is_not_logged() -> None:
    filler = " x" * (MAX_TEXT_CHARS // 4 - 8)
    text = f"{filler} amqp://me:{'pw01' * 20}@host {'x ' * MAX_TEXT_CHARS}"
    assert "pw01" not in mask_text(text)


def test_password_of_address_is_masked_as_by_former_pattern() -> None:
    former, numbers = re.compile(r"(://[^:/@\s]*:)[^@\s]+(@)"), random.Random(18)
    for _ in range(20_000):
        text = "".join(numbers.choices([":", "/", "://", "@", " ", "a", "b", "\n", "://a:"], k=numbers.randint(0, 14)))
        assert mask_text(text) == former.sub(r"\1***\2", text)


@pytest.mark.parametrize(("level", "written"), [(None, ["info", "warning"]), ("warning", ["warning"]), ("ERROR", [])])
def test_log_level_is_a_setting(level: str | None, written: list[str]) -> None:
    program = "import structlog\nfrom bus.observability.logs import configure_logging\nconfigure_logging()\nlog = structlog.get_logger()\n"
    environment = {name: value for name, value in os.environ.items() if name != "LOG_LEVEL"} | ({"LOG_LEVEL": level} if level else {})
    command = [sys.executable, "-c", program + "log.debug('x')\nlog.info('x')\nlog.warning('x')"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert [json.loads(line)["level"] for line in done.stderr.splitlines()] == written
