"""The source system's worker: one blocking consumer that does everything inline. `python -m benchmarks.inline_worker '{"amqp_url": …}'`.

Takes one message, generates with the stock pipeline (whose callback reports progress while the device waits), watermarks, stores, calls
the webhook and acks.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pika

from actors.engines.diffusion.progress import PROGRESS_PERCENTS
from actors.engines.diffusion.requests import DiffusionRequest
from benchmarks.inline_pipeline import draw_watermark
from benchmarks.stock_pipelines import DrawFunction, open_stock_pipeline

QUEUE = "image_generation_inline"


@dataclass
class InlineWorker:
    draw: DrawFunction
    backend: httpx.Client
    store: Path
    reporting_seconds: float = 0.0
    remaining_milestones: list[int] = field(default_factory=list)

    def on_message(self, channel: Any, method: Any, _: Any, body: bytes) -> None:
        data = json.loads(body)["data"]
        self.remaining_milestones, self.reporting_seconds = list(PROGRESS_PERCENTS), 0.0
        request, steps = parse_order(data), data["num_inference_steps"]
        began = time.perf_counter()
        picture = self.draw(request, lambda step: self.report_progress(data["generation_id"], step * 100 // steps))
        busy = time.perf_counter() - began - self.reporting_seconds
        file = self.store / f"gen-{data['generation_id']}.png"
        file.write_bytes(draw_watermark(picture))
        self.call_webhook("POST", "complete", {"generation_id": data["generation_id"], "result_url": file.as_uri()})
        channel.basic_ack(method.delivery_tag)
        sys.stderr.write(f"inline.busy {busy}\n")

    def report_progress(self, generation_id: int, percent: int) -> None:
        if self.remaining_milestones and percent >= self.remaining_milestones[0]:
            self.remaining_milestones.pop(0)
            began = time.perf_counter()
            self.call_webhook("PATCH", "progress", {"generation_id": generation_id, "progress": {"progress_percent": percent}})
            self.reporting_seconds += time.perf_counter() - began

    def call_webhook(self, method: str, endpoint: str, body: dict[str, Any]) -> None:
        self.backend.request(method, f"/api/webhooks/inference/{endpoint}", json=body).raise_for_status()


def parse_order(data: dict[str, Any]) -> DiffusionRequest:
    width, height = data["parameters"]["width"], data["parameters"]["height"]
    seed = int.from_bytes(hashlib.sha256(str(data["generation_id"]).encode()).digest()[:4])
    return DiffusionRequest(
        prompt=data["prompt"], steps=data["num_inference_steps"], seed=seed, width=width, height=height, guidance_scale=7.5
    )


def main(amqp_url: str, backend_url: str, model: str, store: str, threads: int) -> None:
    worker = InlineWorker(open_stock_pipeline(Path(model), threads), httpx.Client(base_url=backend_url), Path(store))
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    channel.queue_declare(QUEUE, durable=True)
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(QUEUE, worker.on_message)
    sys.stderr.write("actors.ready\n")
    channel.start_consuming()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
