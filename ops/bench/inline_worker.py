"""The source system's way: one blocking consumer that does everything inline. `python -m ops.bench.inline_worker '{"amqp_url": …}'`.

Take one message, draw with the stock pipeline (its callback reports progress, and the device waits), watermark, store, tell, ack.
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

from actors.engines.image_work import ImageWork
from actors.engines.milestones import MILESTONES
from actors.engines.stock_diffusion import Draw, open_stock_pipeline
from ops.bench.inline import watermark

QUEUE = "image_generation_inline"


@dataclass
class Worker:
    draw: Draw
    backend: httpx.Client
    store: Path
    reporting_seconds: float = 0.0
    left: list[int] = field(default_factory=list)

    def take(self, channel: Any, method: Any, _: Any, body: bytes) -> None:
        data = json.loads(body)["data"]
        self.left, self.reporting_seconds = list(MILESTONES), 0.0
        work = work_of(data)
        began = time.perf_counter()
        picture = self.draw(work, lambda step: self.report(data["generation_id"], step * 100 // work.steps))
        busy = time.perf_counter() - began - self.reporting_seconds
        file = self.store / f"gen-{data['generation_id']}.png"
        file.write_bytes(watermark(picture))
        self.tell("POST", "complete", {"generation_id": data["generation_id"], "result_url": file.as_uri()})
        channel.basic_ack(method.delivery_tag)
        sys.stderr.write(f"inline.busy {busy}\n")

    def report(self, generation_id: int, percent: int) -> None:
        if self.left and percent >= self.left[0]:
            self.left.pop(0)
            began = time.perf_counter()
            self.tell("PATCH", "progress", {"generation_id": generation_id, "progress": {"progress_percent": percent}})
            self.reporting_seconds += time.perf_counter() - began

    def tell(self, method: str, call: str, body: dict[str, Any]) -> None:
        self.backend.request(method, f"/api/webhooks/inference/{call}", json=body).raise_for_status()


def work_of(data: dict[str, Any]) -> ImageWork:
    width, height = data["parameters"]["width"], data["parameters"]["height"]
    seed = int.from_bytes(hashlib.sha256(str(data["generation_id"]).encode()).digest()[:4])
    return ImageWork(prompt=data["prompt"], steps=data["num_inference_steps"], seed=seed, width=width, height=height, guidance_scale=7.5)


def main(amqp_url: str, backend_url: str, model: str, store: str, threads: int) -> None:
    worker = Worker(open_stock_pipeline(Path(model), threads), httpx.Client(base_url=backend_url), Path(store))
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    channel.queue_declare(QUEUE, durable=True)
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(QUEUE, worker.take)
    sys.stderr.write("actors.ready\n")
    channel.start_consuming()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
