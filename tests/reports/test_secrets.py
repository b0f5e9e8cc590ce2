"""No secret leaves a process: every secret setting has a marked value, every outgoing call fails, and what comes out is searched."""

import asyncio
import io
import json
import os
import re
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import asyncpg
import httpx
import pytest
from PIL import Image

from actors import ledger
from bus.actor import Context
from bus.settings import BusSettings
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts import broker_names
from ops.local.rabbitmq import RabbitNode
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor, wait_until
from tests.support.live_gateway import live_gateway
from tests.support.otlp_collector import open_collector
from tests.support.secret_settings import MARK, marked_environment, quoting_server, secret_settings

ROOT = Path(__file__).parents[2]
PASSWORD = f"{MARK}/pass+word:0123@4567"
"""Of the users of the real broker and database: it must be written differently in a URL."""
FORMS_OF_MARK = (
    MARK,
    MARK.encode().hex(),
    *(b64encode(b"-" * before + MARK.encode())[-(-before * 8 // 6) : len(MARK) * 8 // 6 + before].decode() for before in range(3)),
)
"""Of base64 those characters that depend on nothing before or after it."""
STEPS = ("webhook", "text", "consult", "upload", "watermark", "ledger", "dead-letters")


@dataclass
class Haystack:
    """Texts by where they came out."""

    texts: dict[str, str] = field(default_factory=dict)

    def add(self, place: str, text: Any) -> None:
        written = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)
        self.texts[place] = self.texts.get(place, "") + written

    def assert_clean(self) -> None:
        """As text, in hexadecimal, and in base64, as in a Basic header, where it looks different at each of three positions."""
        found = ((place, text, text.find(form)) for place, text in self.texts.items() for form in FORMS_OF_MARK)
        shown = {place: text[max(0, at - 200) : at + 100] for place, text, at in found if at >= 0}
        assert not shown
        assert [place for place, text in self.texts.items() if not text] == [], "nothing came out"


@dataclass
class Process:
    process: asyncio.subprocess.Process
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    async def wait_for(self, word: str, seconds: float = 60) -> None:
        async def written() -> bool:
            assert self.process.returncode is None, self.output()[-3000:]
            return word in self.output()

        await wait_until(written, seconds)

    def url(self, event: str) -> str:
        line = next(line for line in self.output().splitlines() if f'"{event}"' in line)
        return str(json.loads(line)["url"])


@asynccontextmanager
async def start_process(log: Path, environment: dict[str, str], *words: str) -> AsyncIterator[Process]:
    """A command in a process of its own; terminated at the end of the block."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ops.cli", *words, cwd=ROOT, env=environment, stdout=file, stderr=asyncio.subprocess.STDOUT
        )  # fmt: skip
    try:
        yield Process(process, log)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def run_command(environment: dict[str, str], *words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops.cli", *words,
        cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    return output.decode()


def with_password(url: str) -> str:
    """The URL of the user `marked`."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"marked:{quote(PASSWORD, safe='')}@{parts.hostname}:{parts.port}").geturl()


@pytest.fixture
def marked_amqp_url(rabbitmq: RabbitNode) -> str:
    vhost = urlsplit(rabbitmq.url).path.removeprefix("/") or "/"
    try:
        rabbitmq.rabbitmqctl("add_user", "marked", PASSWORD)
    except Exception:
        rabbitmq.rabbitmqctl("change_password", "marked", PASSWORD)
    rabbitmq.rabbitmqctl("set_permissions", "-p", vhost, "marked", ".*", ".*", ".*")
    return with_password(rabbitmq.url)


@pytest.fixture
async def marked_database_url(database_url: str) -> str:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        f"do $$ begin create role marked superuser login password '{PASSWORD}'; exception when duplicate_object then null; end $$"
    )
    await connection.close()
    return with_password(database_url)


@pytest.mark.parametrize("before", range(3))
@pytest.mark.parametrize("written", [bytes.decode, bytes.hex, lambda data: b64encode(data).decode()], ids=["text", "hex", "base64"])
def test_search_finds_every_form_of_the_mark(before: int, written: Any) -> None:
    hay = Haystack()
    hay.add("here", f"Basic {written(b'u' * before + MARK.encode() + b'0815')}")
    with pytest.raises(AssertionError, match="here"):
        hay.assert_clean()


async def test_error_that_quotes_secrets_is_masked_in_every_message_about_it(
    bus_settings: BusSettings, start_worker: StartWorker, store_folder: Path, broker_client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind behind depictio/depictio #104, slackapi/java-slack-sdk #566 and DataDog/dd-agent #3053: any library's exception may quote a
    header, a URL or a key. Whatever a handler raises: reply, events, dead letter, job, history and the answers over HTTP have no secret.
    """
    for setting in secret_settings():  # each alone, since of two names of a setting one is read
        with monkeypatch.context() as environment:
            for name, value in {"AMQP_URL": "amqp://host", "STORE_URL": "file:///nowhere", setting.variable: setting.value}.items():
                environment.setenv(name, value)
            if setting.field == "aws_secret_access_key":
                environment.setenv("AWS_ACCESS_KEY_ID", "AKIA0815")
            setting.settings()
    secrets = [setting.secret for setting in secret_settings()]
    quoted = " ".join(f"b'Bearer {secret}\\n' {quote(secret, safe='')}" for secret in secrets) + f" {secrets[0][:30]}"

    async def fail(command: Echo, _: Context) -> Echoed:
        raise RuntimeError(f"{command.text} {quoted}")

    hay, job, actor = Haystack(), f"job-{uuid4().hex[:8]}", echo_actor(fail)
    async with (
        start_worker(actor, *ledger.ACTORS),
        live_gateway(bus_settings, store_folder) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        events = await broker_client.subscribe_events("#")
        await broker_client.publish(
            actor.step, {"text": "the call failed:"}, correlation_id=job, reply_to=broker_client.reply_queue, type=f"{actor.step}.v1"
        )
        hay.add("reply", (await broker_client.next_reply())[1])
        dead = await broker_client.take_message(broker_names.dead_letter_queue(actor.step))
        hay.add("dead letter", {name: str(value) for name, value in dead.headers.items()})

        async def in_ledger() -> bool:
            return bool((await http.get(f"/jobs/{job}")).json().get("state") == "failed")

        await wait_until(in_ledger)
        for path in (f"/jobs/{job}", f"/jobs/{job}/events", "/jobs"):
            hay.add(path, (await http.get(path)).text)
    while not events.empty():
        hay.add("events", events.get_nowait())
    hay.assert_clean()
    for place in ("reply", "dead letter", f"/jobs/{job}", f"/jobs/{job}/events", "events"):
        assert "the call failed: b'Bearer ***" in hay.texts[place], "the rest of the text is kept"


async def test_failing_calls_of_every_kind_show_no_secret_anywhere(
    marked_amqp_url: str, marked_database_url: str, store_folder: Path, broker_client: BrokerClient, tmp_path: Path
) -> None:
    """clusterzx/paperless-ai #966, open-telemetry/opentelemetry-collector-contrib #46200, DarriEy/Auramaur #406: a server refuses a call
    and quotes the token; the client logs the answer, or sends it on. Here every server does: the backend, the model servers, S3, Google's
    storage and the trace collector. Replies, events, dead letters, HTTP answers, logs, metrics, health, traces and commands are searched.
    """
    hay = Haystack()
    async with open_claim_store(StoreSettings(store_url=store_folder.as_uri())) as claims:
        with io.BytesIO() as file:
            Image.new("RGB", (64, 64), "grey").save(file, "PNG")
            claim = await claims.write(file.getvalue(), tenant=None, media_type="image/png", width=64, height=64)
    picture = claim.model_dump(mode="json", exclude_none=True)
    with quoting_server() as server, open_collector() as collector:
        environment = os.environ | marked_environment() | {
            "AMQP_URL": marked_amqp_url, "DATABASE_URL": marked_database_url, "STORE_URL": store_folder.as_uri(),
            "RETRY_DELAYS_SECONDS": "0.1", "LONG_DELAYS_SECONDS": "0.5", "HEALTH_PORT": "0", "LOG_LEVEL": "DEBUG",
            "BACKEND_API_URL": server, "VLLM_SERVER_URL": f"{server}/v1", "TEXT_PATIENCE_SECONDS": "1", "VLM_ENGINE": "openai",
            "VLM_BASE_URL": f"{server.replace('://', f'://user:{MARK}-in-a-url@')}/v1", "GCS_API_URL": server,
            "AWS_S3_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "AKIA0815", "UPLOAD_URL": "s3://bucket/pictures",
            "ASSET_ALLOWED_HOSTS": "127.0.0.1", "ASSET_BUCKETS": "gs://bucket", "ATELIER_ALLOW_PRIVATE_ADDRESSES": "true",
            "ATELIER_ALLOW_PLAIN_HTTP": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "GATEWAY_OPERATORS": "tenant",
        }  # fmt: skip
        del environment["DATABASE_DIRECT_URL"]
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": server, "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{MARK}-of-a-library"}
        async with (
            start_process(tmp_path / "worker.log", environment, "run", *STEPS) as worker,
            start_process(tmp_path / "gateway.log", environment | traced, "gateway", "--port", "0") as gateway,
        ):
            await worker.wait_for("actors.ready")
            await gateway.wait_for("gateway.ready")
            events = await broker_client.subscribe_events("#")
            commands: dict[str, dict[str, Any]] = {
                "webhook": {"kind": "complete", "generation_id": int(time.time() * 1000) % 10**9, "result_url": "https://x.example/y.png"},
                "text": {"messages": [{"role": "user", "content": "hello"}]},
                "consult": {"prompt": "what is it?", "picture": picture},
                "upload": {"images": [picture], "name": f"gen-{uuid4().hex[:8]}"},
                "watermark": {"images": [picture], "signature": {"image_uri": "gs://bucket/signature.png"}},
            }
            jobs = {step: f"job-{uuid4().hex[:8]}" for step in commands}
            for step, command in commands.items():
                await broker_client.publish(step, command, correlation_id=jobs[step], reply_to=broker_client.reply_queue, type=f"{step}.v1")
            replies = [await broker_client.next_reply(30) for _ in commands]
            assert [kind for kind, _ in replies] == ["fault.v1"] * len(commands), replies
            hay.add("replies", [body for _, body in replies])
            assert hay.texts["replies"].count("refused: ") >= 3, "the server's answer is quoted, and so would be the token in it"

            key = environment["GATEWAY_API_KEYS"].partition(":")[2]
            async with httpx.AsyncClient(base_url=gateway.url("gateway.ready"), timeout=30) as http:
                unknown = {"Authorization": f"Bearer {MARK}-an-unknown-key"}
                hay.add("401", (await http.get("/jobs", headers=unknown)).text)
                http.headers["Authorization"] = f"Bearer {key}"
                chat = {"model": "any", "messages": [{"role": "user", "content": "hi"}]}
                for path, body in {
                    "/v1/chat/completions": chat, "/v1/chat/completions?stream": chat | {"stream": True}, "/generate": {"message": "hi"},
                    "/jobs": {"step": "webhook", "arguments": {}},
                }.items():  # fmt: skip
                    hay.add(path, (await http.post(path.partition("?")[0], json=body)).text)

                async def stored() -> bool:
                    listed = (await http.get("/dead-letters", params={"since": "2020-01-01T00:00:00Z"})).json()
                    return {letter["job_id"] for letter in listed.get("letters", [])} >= set(jobs.values())

                await wait_until(stored, 30)
                for path in (
                    *(f"/jobs/{job}" for job in jobs.values()), *(f"/jobs/{job}/events" for job in jobs.values()),
                    "/jobs", "/dead-letters", "/dead-letters/groups", "/health", "/status/detailed", "/v1/models",
                ):  # fmt: skip
                    hay.add(path, (await http.get(path)).text)
            async with httpx.AsyncClient(base_url=worker.url("health.ready"), timeout=30) as http:
                hay.add("health", (await http.get("/health/ready")).text)
                hay.add("metrics", (await http.get("/metrics")).text)
            closed = environment | {"AMQP_URL": marked_amqp_url.replace(str(urlsplit(marked_amqp_url).port), "1")}
            refused = environment | {"AMQP_URL": marked_amqp_url.replace("marked:", "nobody:")}
            calls = {
                "dead-letters list": run_command(environment, "dead-letters", "list", "--since", "1h", "--json"),
                "doctor": run_command(environment, "doctor", "--services"),
                "doctor of a dead broker": run_command(closed, "doctor", "--services", "--json"),
                "worker that is refused": run_command(refused, "run", "webhook"),
                "gateway of a dead broker": run_command(closed, "gateway", "--port", "0"),
            }
            for place, output in zip(calls, await asyncio.gather(*calls.values()), strict=True):
                hay.add(place, output)
        hay.add("worker log", worker.output())
        hay.add("gateway log", gateway.output())
        hay.add("traces", str(collector.spans))
    while not events.empty():
        hay.add("events", events.get_nowait())
    connection = await asyncpg.connect(marked_database_url)
    rows = await connection.fetch("select * from atelier.dead_letters where job_id = any($1)", list(jobs.values()))
    await connection.close()
    hay.add("table of dead letters", [{name: value for name, value in dict(row).items() if name != "body"} for row in rows])
    hay.assert_clean()
    assert "***" in hay.texts["table of dead letters"]
    assert re.search(r"refused: .*\*\*\*", hay.texts["worker log"]), "the log has the answer of the server, without the token"
