"""What the demo orders: a picture, in the form that the real backend publishes, or an advertisement, as the gateway places one."""

from argparse import Namespace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bus.amqp.jobs import JobRequest, submit_job
from bus.amqp.publisher import Publisher
from gateway.jobs.orders import Ad
from ops.commands.demo_backend import image_order_message

AD_SECONDS = 600.0


async def publish_order(arguments: Namespace, generation_id: int, job_id: str, models: Path, outbox: Publisher) -> None:
    if arguments.ad:
        await submit_job(ad_order(arguments, generation_id, job_id), outbox)
    else:
        await outbox.publish(
            image_order_message(generation_id, image_data(arguments, (models / "loras" / "tiny-neat.safetensors").as_uri()))
        )


def ad_order(arguments: Namespace, generation_id: int, job_id: str) -> JobRequest:
    """The writer is asked for a line about the picture's prompt."""
    wanted = {
        "kind": "ad",
        "prompt": arguments.prompt,
        "artist": arguments.artist,
        "steps": arguments.steps,
        "generation_id": generation_id,
    }
    deadline = datetime.now(UTC) + timedelta(seconds=AD_SECONDS)
    return JobRequest(job_id=job_id, kind="ad", slip=Ad.model_validate(wanted).slip(job_id), deadline=deadline, original_request=wanted)


def image_data(arguments: Namespace, lora: str) -> dict[str, Any]:
    """The order's `data`. A size in pixels goes the way of form A's parameters."""
    data = {
        "prompt": arguments.prompt,
        "prompt_tags": [arguments.prompt],
        "artist_name": arguments.artist,
        "num_inference_steps": arguments.steps,
        "count": arguments.count,
        "lora_path": lora,
        "seed": None,
        "signature_path": "",
        "signature_config": {"position": "bottom-right", "size": "medium", "opacity": 0.7},
    }
    by_ratio = ":" in arguments.size
    return data | ({"aspect_ratio": arguments.size} if by_ratio else {"parameters": {"size": arguments.size}})
