"""Texts that quoted secrets in public reports, and the channels of a process that write them without our doing."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actors.engines.process.executor import open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings
from bus.amqp.messages import OutboundMessage
from bus.errors import PermanentError, PublishError, TemporaryError
from bus.masking import MAX_LEARNED, MAX_TEXT_CHARS, _value_pattern, mask_known, mask_text, remember_secret, remember_token, remember_url
from bus.observability import tracing
from bus.observability.health import Health
from bus.observability.settings import remember_environment
from bus.outcome import fault_from_error, format_stack
from bus.secrets import remember_keys
from bus.worker.readiness import Readiness
from gateway.problems import HttpProblem
from tests.support.broker_client import wait_until
from tests.support.hostile_patterns import find_superlinear
from tests.support.secret_settings import MARK

ROOT = Path(__file__).parents[2]
SECRET = f"sk-{MARK}/a+b=0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # slackapi/java-slack-sdk #566
        ("Unexpected char 0x0a at 61 in Authorization value: Bearer xoxb-4711-0815\n", "value: Bearer ***\n"),
        # jkreileder/cf-ips-to-hcloud-fw #1446
        ("reserved character(s) in header value: 'Bearer hcloud-4711\\n'", "value: 'Bearer ***\\n'"),
        # celery/celery #2808, vshulcz/deja-vu #171: a password without a user
        ("results: redis://:foo4711@example.ec2:17262/0", "redis://:***@example.ec2:17262/0"),
        # mher/flower #1512, celery/celery #10484: several brokers in one setting
        ("redis://:mypass1@redis-1;redis://:mypass2@redis-2", "redis://:***@redis-1;redis://:***@redis-2"),
        # langflow-ai/langflow #15147: libpq's parameter
        ("postgresql://db.example:5432/langflow?user=u&password=hunter2&x=1", "?user=u&password=***&x=1"),
        # duckdb/duckdb-postgres #368, fossology/fossology #355, statping/statping #229: libpq's words
        ("Unable to connect to Postgres at password='MySecret' : no such file", "at password='***' : no such file"),
        ("Connection string: 'dbname=x host=localhost user=fossy password=xxxxx'", "user=fossy password=***'"),
        # vm0-ai/vm0 #16277, agbcloud/agbcloud-sdk #14, backblaze-labs/genblaze #75: signed addresses
        (
            "error sending request for url (https://s3.example/b/k?X-Amz-Date=1&X-Amz-Signature=dead0815)",
            "X-Amz-Date=1&X-Amz-Signature=***",
        ),
        ("https://oss.example/k?OSSAccessKeyId=id&Signature=dead0815%3D&Expires=9", "Signature=***&Expires=9"),
        ("https://blob.example/k?sv=2022&sig=dead0815%3D", "sv=2022&sig=***"),
        # DarriEy/Auramaur #406: a key in the query
        ("403, message='Forbidden', url='https://api.congress.gov/v3/bill?api_key=AbCd4711&format=json'", "api_key=***&format=json"),
        # pydantic/pydantic-settings #256, #530, #937
        ("Field required [type=missing, input_value={'A': 'x', 'PASS': 'sekret'}, input_type=dict]", "input_value=***, input_type=dict]"),
        # MCPJam/inspector #3532, thedotmack/claude-mem #3707: other schemes than Bearer
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ***"),
        ("'Authorization': 'Token 0815-4711'", "'Authorization': '***'"),
        # auth0/auth0-evals #238: other characters in a token
        ("Authorization: Bearer abc%4711!0815", "Authorization: ***"),
        # getsentry/sentry-python's addresses, and tokens of Git servers: a token in place of the user
        ("cannot reach https://key4711abcdef@o1.ingest.example/1", "https://***@o1.ingest.example/1"),
        ("redis://0815abcdef0815abcdef@cache.example/0", "redis://***@cache.example/0"),
        ("Signature: 0815abcdef is not known", "Signature: *** is not known"),
        # overture-stack/song #662
        ("Illegal character(s) in message header value: Bearer 7ab1-0815-4711", "header value: Bearer ***"),
    ],
)
def test_text_of_a_report_has_no_secret(text: str, masked: str) -> None:
    assert masked in mask_text(text)
    for secret in ("4711", "0815", "hunter2", "MySecret", "xxxxx", "sekret", "mypass", "dXNlcjpw"):
        assert secret not in mask_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "body.token: Field required; body.secret: Extra inputs are not permitted",
        "Unexpected token: < in JSON at position 0",
        "Unknown token: 128001 in stop",
        "signature: 3 glyphs are missing",
        "max_token: 4096 is too much, the token: 5 of the sequence",
        "postgresql://atelier_gateway@db.example:5432/atelier and https://git@github.example/a.git",
        "https://cdn.example/package@18.2.0/index.js",
        "INTERNAL_API_TOKEN: it has six characters, at least 32 are needed: make one with `openssl rand -hex 32`",
        "max_tokens=512, tokens=7; the model has 4096 tokens",
        "no API key: set VLLM_API_KEY or OPENAI_API_KEY",
        "https://host.example/a?page=2&size=10 answered 404",
        "the key 'a/b.png' is not plain names joined by '/'",
    ],
)
def test_message_without_a_secret_stays_as_it_is(text: str) -> None:
    assert mask_text(text) == text


@pytest.mark.parametrize("written", [str, repr, lambda text: repr(text.encode()), json.dumps, lambda text: json.dumps(repr(text))])
@pytest.mark.parametrize("secret", [SECRET, f"{MARK}\"quoted\\and'more", f"{MARK}-pässwörter-0815", f"{MARK}<&>0815"])
def test_known_secret_is_masked_in_every_form(secret: str, written: Any) -> None:
    """yc-software/qm #80, veqryn in godror/godror #76: a form of the value that the patterns do not know."""
    remember_secret(secret)
    for text in (f"params={{{written(secret)} MYSERVICE}}", f"x{written(secret)}x", f"\\n{written(secret)}"):
        assert MARK not in mask_text(text)


def escape_specials(form: str, text: str) -> str:
    """Each character that is no letter and no digit in a form, with its code as the argument."""
    return re.sub(r"[^A-Za-z0-9]", lambda found: form.format(found[0], code=ord(found[0])), text)


@pytest.mark.parametrize(
    "form",
    [
        "\\{}", "\\\\\\{}", "\\u{code:04X}", "\\u{code:04x}", "\\\\u{code:04x}", "\\x{code:02x}",
        "%{code:02x}", "%25{code:02X}", "&#{code};", "&#x{code:X};", "&amp;#{code};",
    ],
)  # fmt: skip
@pytest.mark.parametrize("secret", [SECRET, f'{MARK}"a/b+c=d&e<f\\-0815'])
def test_known_secret_is_masked_as_servers_escape_it(secret: str, form: str) -> None:
    """clusterzx/paperless-ai #966: PHP writes `/` as `\\/`, .NET `+` as `\\u002B`, Go `=` as `\\u003d` and `+` as `&#43;`."""
    remember_secret(secret)
    assert mask_text(f"<{escape_specials(form, secret)}>") in ("<***>", "<\\***>")
    assert mask_text(json.dumps(json.dumps({"m": json.dumps(secret)}))).count("0815") == 0
    assert mask_text(f"bad key {escape_specials(form, secret[:-3])}").removeprefix("bad key ") == "***", "also where the end was cut"


@pytest.mark.parametrize("secret", [SECRET, f'{MARK}"a\\b-0815', "atelier-dev"])
def test_pattern_of_a_secret_is_linear(secret: str) -> None:
    assert find_superlinear(_value_pattern(secret).pattern, 0, "sub") is None


def test_long_secret_is_masked_and_its_pattern_costs_little() -> None:
    """The key of a service account, of several lines."""
    secret = "\n".join(f"{MARK}/{number}+" for number in range(300))
    started = time.process_time()
    remember_secret(secret)
    for text in (secret, json.dumps(secret), repr(secret)):
        assert MARK not in mask_text(f"x {text} y")
    assert time.process_time() - started < 2


@pytest.mark.parametrize("kept", range(16, len(SECRET)))
def test_half_a_known_secret_is_masked(kept: int) -> None:
    """vshulcz/deja-vu #171, DarriEy/Auramaur #406: the text was cut before it was masked."""
    remember_secret(SECRET)
    assert MARK not in mask_text(f"the server answered 401: Incorrect API key provided: {SECRET[:kept]}")


def test_simple_password_is_masked_only_where_it_stands_alone() -> None:
    remember_url("amqp://me:atelier-dev@host/")
    remember_url("postgresql://postgres:postgres@postgres/postgres")
    assert mask_text("user atelier, password atelier-dev, queue atelier-development") == (
        "user atelier, password ***, queue atelier-development"
    )
    assert mask_text("postgresql://host: database postgres is missing") == "postgresql://host: database postgres is missing"


def test_password_with_characters_of_a_url_is_masked_in_whole() -> None:
    """amqp-node/amqplib #269, langflow-ai/langflow #15147: what follows the first `@`, `/` or `#` was taken for the host."""
    remember_url(f"amqp://me:a@{MARK}/b#c@host:5672/v")
    assert MARK not in mask_text(f"ENOTFOUND a@{MARK}/b#c of amqp://me:a@{MARK}/b#c@host:5672")


async def test_errors_of_ours_have_no_secret_from_the_start() -> None:
    """jkreileder/cf-ips-to-hcloud-fw #1446: the error of a library is passed on by whoever catches it."""
    remember_secret(SECRET)
    text = f"b'Bearer {SECRET}'"
    for error in (TemporaryError(text), PermanentError("x", text), PublishError(text), HttpProblem(503, "x", text)):
        assert MARK not in f"{error} {error!r} {getattr(error, 'detail', '')}"
    unexpected = ValueError(text)
    assert MARK not in fault_from_error(unexpected, "x", "text", 1).message + format_stack(unexpected)


def test_error_without_a_readable_text_is_named_by_its_type() -> None:
    class Unreadable(Exception):
        def __str__(self) -> str:
            raise ValueError("the text of the error")

    assert fault_from_error(Unreadable(), "x", "text", 1).message == "Unreadable"
    assert "Unreadable" in format_stack(Unreadable())


async def test_health_and_status_have_no_secret() -> None:
    """danihodovic/celery-exporter #308: the state of a lost connection."""
    remember_secret(SECRET)

    async def fail() -> str | None:
        raise OSError(f"amqp://me:{SECRET}@host is away")

    async def reason() -> str | None:
        return f"the key {SECRET} is refused"

    readiness = Readiness("text")
    readiness.set_unready(f"vLLM does not start: OSError('{SECRET}')")
    assert MARK not in f"{await Health(checks={'a': fail, 'b': reason}).check_all()} {readiness.reason}"


def test_span_of_an_exception_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """open-telemetry/opentelemetry-rust #3021: traces go to another company."""
    remember_secret(SECRET)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    with pytest.raises(ValueError, match=MARK), tracing.trace_publish([OutboundMessage("", "q", b"", "m", "j", "t")]):
        raise ValueError(f"Bearer {SECRET}")
    (span,) = exporter.get_finished_spans()
    assert "Bearer ***" in span.to_json()
    assert "exception.stacktrace" in span.to_json()
    assert MARK not in span.to_json()


PROGRAM = """
import asyncio, logging, os, sys
import structlog
from bus.observability.logs import configure_logging
configure_logging(json=True)
token = os.environ["HF_TOKEN"]
log = structlog.get_logger()
log.info("a", cause=f"x{token}x", error=ValueError(token), items=[{"note": token}], **{token: 1})
logging.getLogger("library").error("request failed: %s", {"headers": [("x-any", token)]}, exc_info=ValueError(token))
async def fail():
    raise RuntimeError(token)
async def main():
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
asyncio.run(main())
import gc; gc.collect()
raise RuntimeError(f"at the end: {token} {os.environ['HTTPS_PROXY']} {os.environ['OTEL_EXPORTER_OTLP_HEADERS']}")
"""


def test_logs_of_anybody_and_the_last_traceback_have_no_secret() -> None:
    """ITISFoundation/osparc-simcore #8581, aperture-data/aperturedb-python #411, open-telemetry/opentelemetry-rust #3367: loggers of
    libraries, tracebacks, and secrets that only libraries read.
    """
    environment = os.environ | {
        "HF_TOKEN": f"hf_{MARK}0815",
        "HTTPS_PROXY": f"http://me:{MARK}-proxy@proxy:3128",
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-honeycomb-team={MARK}-otel,other={MARK}-more",
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert MARK not in done.stderr + done.stdout
    assert "Task exception was never retrieved" in done.stderr
    assert "RuntimeError: at the end: *** http://me:***@proxy:3128" in done.stderr


CHANNELS = """
import logging, multiprocessing, os, threading, warnings
from bus.observability.logs import configure_logging
configure_logging(json=True)
token = os.environ["HF_TOKEN"]
def fail():
    raise ValueError(f"in a function: {token} redis://me:hunter2@host")
class Failing:
    def __del__(self):
        fail()
Failing()
thread = threading.Thread(target=fail, name="a-thread")
thread.start()
thread.join()
logging.getLogger("library").warning("count: %d", token)
warnings.warn(f"deprecated: {token}")
child = multiprocessing.get_context("fork").Process(target=fail)
child.start()
child.join()
"""


def test_channels_of_python_itself_have_no_secret() -> None:
    """ITISFoundation/osparc-simcore #8581: a thread, a destructor, a log record that cannot be formatted, a warning, a forked process."""
    environment = os.environ | {"HF_TOKEN": f"hf_{MARK}0815"}
    done = subprocess.run([sys.executable, "-c", CHANNELS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert MARK not in done.stderr + done.stdout
    for channel in ("Failing.__del__", "thread a-thread", "--- Logging error ---", "UserWarning: deprecated: ***", "Process ForkProcess-1"):
        assert channel in done.stderr
    assert done.stderr.count("ValueError: in a function: ***") == 3
    assert done.stderr.count("redis://me:***@host") >= 2


async def test_model_process_shows_no_secret(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The kind behind huggingface tokens in loading errors: the process reads no settings class, only the environment."""
    monkeypatch.setenv("HF_TOKEN", f"hf_{MARK}0815")
    spec = EngineSpec("tests.support.faulty_engine:open_faulty_engine", {"required_file": f"/nowhere/hf_{MARK}0815"})
    reasons: list[str | None] = []
    settings = ExecutorSettings(failures_before_open=1, first_wait_seconds=0.05, longest_wait_seconds=0.3)
    async with open_executor(spec, settings, max_in_flight=1, capacity=1, set_unready=reasons.append):

        async def failed() -> bool:
            return any(reason and "/nowhere/***" in reason for reason in reasons)

        await wait_until(failed, 30)
    assert MARK not in f"{reasons} {capfd.readouterr().err}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_TOKENS", "0123456789"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/google/key.json"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "tokens/of-the-pod"),
        ("CREDENTIALS_TIMESTAMP_URL", "http://timestamp.example.com"),
        ("TOKENIZERS_PARALLELISM", "very-parallel"),
        ("API_TOKEN", "short"),
    ],
)
def test_variable_that_is_no_secret_is_not_masked(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    remember_environment()
    assert mask_text(f"the value is {value}") == f"the value is {value}"


def test_record_of_a_library_has_no_secret_in_a_command_without_logging() -> None:
    """danihodovic/celery-exporter #308: `atelier doctor` configures no logging, and the client of the broker logs."""
    program = "import logging, os; from ops.cli import main; main(['settings', 'health'])\n"
    program += "logging.getLogger('library').error('refused: %s', os.environ['HF_TOKEN'])"
    environment = os.environ | {"HF_TOKEN": f"hf_{MARK}0815"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == "refused: ***\n"


def test_masking_costs_little_and_is_bounded() -> None:
    """Of 50 secrets, a line of a log without one; and a text of 30 MB with many."""
    for number in range(50):
        remember_secret(f"{number:03d}{SECRET}")
    line = '{"event": "step.completed", "step": "image", "job_id": "0123456789", "seconds": 0.25}' * 4
    mask_known(line)
    started = time.process_time()
    for _ in range(1000):
        mask_known(line)
    assert (time.process_time() - started) / 1000 < 100e-6
    started = time.process_time()
    masked = mask_text(f"007{SECRET} " * 1_000_000)
    assert time.process_time() - started < 0.5
    assert MARK not in masked
    assert len(masked) < 2 * MAX_TEXT_CHARS


def test_secrets_that_are_remembered_are_bounded() -> None:
    """What is learned while the process runs never displaces a setting: 600 keys of the gateway displaced the password of the broker."""
    remember_url("amqp://me:amqp-0815-password@host/")
    remember_keys(",".join(f"tenant{number}:{number:05d}abcdefghijkl" for number in range(600)))
    for number in range(2 * MAX_LEARNED):
        remember_token(f"{number:05d}-{MARK}")
    newest, oldest = f"{2 * MAX_LEARNED - 1:05d}-{MARK}", f"00000-{MARK}"
    assert mask_text(f"{newest} amqp-0815-password 00000abcdefghijkl 00599abcdefghijkl {oldest}") == f"*** *** *** *** {oldest}"


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=abc%2Fdef%3Dghi12345", "abc/def=ghi12345"),
        ("WEBHOOK_SECRET", "v1,whsec_QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNk", "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNk"),
        ("VLM_BASE_URL", "http://t0kens@host:8000/v1", "http://t0kens@host"),
        ("VLM_BASE_URL", "http://swordfish%2F1@host:8000/v1", "swordfish/1"),
    ],
)
def test_secret_is_masked_as_it_is_sent(monkeypatch: pytest.MonkeyPatch, name: str, value: str, secret: str) -> None:
    """open-telemetry/opentelemetry-collector-contrib #46200: the setting has another form than the header that an answer quotes."""
    monkeypatch.setenv(name, value)
    remember_environment()
    assert mask_text(f"<{secret}>") in ("<***>", "<http://t0kens@host>")
