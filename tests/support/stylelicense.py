"""The StyleLicense backend for tests: its broker, bucket and webhook receiver, and the worker that docs/migration.md tells to start for it.

The worker is one process, started with the commands and the environment of the page; only the addresses of the services are replaced. All
orders are published at once, as that backend does it, and everything that the system then has seen is recorded.
"""

import asyncio
import io
import json
import os
import re
import shlex
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import httpx
from PIL import Image as Pillow

from contracts import broker_names
from tests.support.broker_client import purge_queues, wait_until
from tests.support.webhook_backend import RecordedRequest, WebhookBackend, open_webhook_backend

ROOT = Path(__file__).parents[2]
BUCKET, LORA_BUCKET = "stylelicense-media", "stylelicense-models"
FIRST_ID = int.from_bytes(os.urandom(5)) << 8
MAX_SECONDS = 300.0
"""For the start of the worker and all orders together; below the time limit of the tests, which would say less of what is missing."""
RED = (255, 0, 0)
PUBLIC_POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/generations/*"}],
}
"""Everybody may read the generated pictures, as in that system's bucket."""


def migration_commands() -> tuple[dict[str, str], list[str]]:
    """The variables and the words of the command in the section of docs/migration.md."""
    section = (ROOT / "docs/migration.md").read_text().split("## StyleLicense worker")[1].split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    lines = [shlex.split(line) for line in block.splitlines() if line]
    exports = [word for words in lines if words[0] == "export" for word in words[1:]]
    (command,) = [words for words in lines if words[0] == "atelier"]
    return dict(word.split("=", 1) for word in exports), command


def order(number: int, **data: Any) -> dict[str, Any]:
    """An order in the form that the backend publishes. Two denoising steps, because the pictures are large."""
    fields = {"style_id": 1, "lora_path": None, "prompt": "harbour, dusk", "aspect_ratio": "1:1", "seed": 7, "signature_path": ""}
    config = {"position": "bottom-right", "size": "medium", "opacity": 0.7}
    fields |= {"generation_id": number, "signature_config": config, "prompt_tags": ["harbour", "dusk"], "num_inference_steps": 2}
    return {"task_id": f"t-{number}", "type": "image_generation", "data": fields | data, "webhook_url": "https://x.example/ignored"}


def orders(backend_url: str) -> dict[str, Any]:
    """The messages by name; each has a generation id of its own, `id_of(name)`."""
    lora = f"s3://{BUCKET}/models/style-1/lora_weights.safetensors"
    return {
        "plain": order(id_of("plain")),
        "again": order(id_of("plain")),
        "styled": order(id_of("styled"), lora_path=lora),
        "other-bucket": order(id_of("other-bucket"), lora_path=f"s3://{LORA_BUCKET}/models/style_1/lora_weights.safetensors"),
        "signed": order(
            id_of("signed"),
            signature_path=f"s3://{BUCKET}/signatures/user_1_red.png",
            signature_config={"position": "top-left", "size": "large", "opacity": 128},
        ),
        "missing": order(id_of("missing"), lora_path=lora + "x", signature_path=f"s3://{BUCKET}/signatures/absent.png"),
        "tall": order(id_of("tall"), aspect_ratio="1:2"),
        "documented": {
            "task_id": "t",
            "type": "image_generation",
            "data": {
                "generation_id": id_of("documented"),
                "style_id": 1,
                "prompt": "a harbour",
                "parameters": {"width": 64, "height": 64},
                "count": 4,
            },
            "callback_url": f"{backend_url}/api/webhooks/inference/complete",
            "created_at": "2025-10-01T00:00:00.000Z",
        },
        "flat": {
            "generation_id": id_of("flat"),
            "style_id": 1,
            "lora_model_url": lora,
            "prompt_tags": ["harbour", "dusk"],
            "artist_name": "김작가",
            "webhook_url": backend_url,
        },
        "adapter": order(id_of("adapter"), lora_path=f"s3://{BUCKET}/models/style-2/adapter_model.safetensors"),
        "invalid": order(id_of("invalid"), aspect_ratio="3:1"),
        "training": {"task_id": "t", "type": "model_training", "data": {"generation_id": id_of("training"), "style_id": 1}},
        "undecodable": b"{nope",
    }


NAMES = ("plain", "styled", "other-bucket", "signed", "missing", "tall", "documented", "flat", "adapter", "invalid", "training")
COMPLETED = NAMES[:9]


def id_of(name: str) -> int:
    return FIRST_ID + NAMES.index(name)


def red_png() -> bytes:
    with io.BytesIO() as file:
        Pillow.new("RGB", (100, 50), RED).save(file, "PNG")
        return file.getvalue()


@dataclass
class Recorded:
    """What the backend and its operators saw. `pictures`: the bytes behind each `result_url`; `dead_letters`: bodies by queue."""

    environment: dict[str, str]
    calls: list[RecordedRequest] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    log: str = ""
    metrics: str = ""
    ready: dict[str, Any] = field(default_factory=dict)
    dead_letters: dict[str, list[bytes]] = field(default_factory=dict)
    exit_code: int | None = None

    def calls_of(self, name: str, kind: str = "") -> list[RecordedRequest]:
        """The calls for an order in their order; of one kind, if given."""
        return [call for call in self.calls if call.body["generation_id"] == id_of(name) and call.path.endswith(kind)]

    def complete(self, name: str) -> dict[str, Any]:
        (call,) = self.calls_of(name, "/complete")
        return dict(call.body)

    def picture(self, name: str) -> Pillow.Image:
        return Pillow.open(io.BytesIO(self.pictures[name]))

    def pixels(self, name: str) -> Pillow.Image:
        return self.picture(name).convert("RGB")

    def log_entries(self, event: str) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == event]


async def record_orders(broker_url: str, database_url: str, s3_endpoint: str, models: dict[str, Path], folder: Path) -> Recorded:
    """Start the worker, publish all orders, wait for their ends, stop the worker."""
    async with open_webhook_backend() as backend, httpx.AsyncClient() as http:
        await fill_buckets(http, s3_endpoint, models)
        health_port = free_port()
        environment, command = migration_commands()
        environment |= service_addresses(broker_url, database_url, s3_endpoint, backend, models, folder, health_port)
        recorded = Recorded(environment)
        async with await aio_pika.connect(broker_url) as connection:
            await purge_queues(connection)
            with TemporaryFile() as log:
                process = await asyncio.create_subprocess_exec(sys.executable, "-m", "ops.cli", *command[1:], env=environment, stderr=log)
                try:
                    await publish_and_wait(connection, backend, process, lambda: os.pread(log.fileno(), 1 << 22, 0))
                    recorded.ready = (await http.get(f"http://127.0.0.1:{health_port}/health/ready")).json()
                    recorded.metrics = (await http.get(f"http://127.0.0.1:{health_port}/metrics")).text
                finally:
                    if process.returncode is None:
                        process.terminate()
                    recorded.exit_code = await process.wait()
                    recorded.log = os.pread(log.fileno(), 1 << 22, 0).decode()
                    recorded.calls = backend.requests
            for name in COMPLETED:
                response = await http.get(recorded.complete(name)["result_url"])
                recorded.pictures[name] = response.raise_for_status().content
            recorded.dead_letters = {
                step: await take_all(connection, step) for step in ("image_generation", "image", "watermark", "webhook")
            }
    return recorded


async def fill_buckets(http: httpx.AsyncClient, endpoint: str, models: dict[str, Path]) -> None:
    lora = models["tiny-lora-a"].read_bytes()
    for path, body in {
        f"{BUCKET}": b"",
        f"{LORA_BUCKET}": b"",
        f"{BUCKET}/models/style-1/lora_weights.safetensors": lora,
        f"{LORA_BUCKET}/models/style_1/lora_weights.safetensors": lora,
        f"{BUCKET}/models/style-2/adapter_model.safetensors": models["tiny-adapter"].read_bytes(),
        f"{BUCKET}/models/style-2/adapter_config.json": json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16}).encode(),
        f"{BUCKET}/signatures/user_1_red.png": red_png(),
    }.items():
        (await http.put(f"{endpoint}/{path}", content=body)).raise_for_status()
    (await http.put(f"{endpoint}/{BUCKET}?policy", json=PUBLIC_POLICY)).raise_for_status()


def service_addresses(
    broker_url: str, database_url: str, s3_endpoint: str, backend: WebhookBackend, models: dict[str, Path], folder: Path, health_port: int
) -> dict[str, str]:
    """What the test replaces of the page's environment, and what a process needs on this machine."""
    broker = urlsplit(broker_url)
    process = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return process | {
        "PYTHONPATH": str(ROOT),
        "RABBITMQ_HOST": str(broker.hostname),
        "RABBITMQ_PORT": str(broker.port),
        "RABBITMQ_USER": str(broker.username),
        "RABBITMQ_PASS": str(broker.password),
        "DATABASE_URL": database_url,
        "AWS_S3_ENDPOINT_URL": s3_endpoint,
        "BACKEND_API_URL": backend.url,
        "IMAGE_MODEL": str(models["tiny-sd"]),
        "IMAGE_LOCAL_CACHE": str(folder),
        "HEALTH_PORT": str(health_port),
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def publish_and_wait(connection: Any, backend: WebhookBackend, process: asyncio.subprocess.Process, read_log: Any) -> None:
    """As the backend publishes: to the queue by its name through the default exchange, persistent, as JSON, without an id."""
    ends_at = time.monotonic() + MAX_SECONDS

    async def ready() -> bool:
        assert process.returncode is None, f"the worker ended: {read_log().decode()[-3000:]}"
        return b"actors.ready" in read_log()

    await wait_until(ready, MAX_SECONDS)
    channel = await connection.channel()
    await channel.declare_queue(broker_names.IMAGE_GENERATION_QUEUE, durable=True)
    for body in orders(backend.url).values():
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        message = aio_pika.Message(data, delivery_mode=2, content_type="application/json")
        await channel.default_exchange.publish(message, broker_names.IMAGE_GENERATION_QUEUE)

    async def ended() -> bool:
        assert process.returncode is None, f"the worker ended: {read_log().decode()[-3000:]}"
        ends = {call.body["generation_id"] for call in backend.requests if not call.path.endswith("/progress")}
        return len(ends) == len(COMPLETED) + 1

    await wait_until(ended, ends_at - time.monotonic())
    await asyncio.sleep(1.0)  # a further call would be seen


async def take_all(connection: Any, step: str) -> list[bytes]:
    """The bodies of all dead letters of a step."""
    channel = await connection.channel()
    queue = await channel.get_queue(broker_names.dead_letter_queue(step))
    bodies = []
    while (message := await queue.get(fail=False, no_ack=True)) is not None:
        bodies.append(message.body)
    return bodies
