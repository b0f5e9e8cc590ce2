"""The demo's orders: a picture, in the form that the real backend publishes, or an advertisement, as the gateway submits one."""

from argparse import Namespace
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from bus.amqp.jobs import JobRequest, submit_job
from bus.amqp.publisher import Publisher
from contracts import broker_names
from gateway.jobs.orders import Ad
from ops.commands.demo_backend import image_order_message

AD_SECONDS = 600.0


async def publish_order(arguments: Namespace, generation_id: int, job_id: str, lora: str | None, publisher: Publisher) -> None:
    """`lora`: of a picture's order."""
    if arguments.ad:
        await submit_job(ad_order(arguments, generation_id, job_id), publisher)
    else:
        order = image_order_message(generation_id, image_data(arguments, lora))
        await publisher.publish(replace(order, exchange=broker_names.COMMANDS_EXCHANGE))  # a publisher may not use the default exchange


def ad_order(arguments: Namespace, generation_id: int, job_id: str) -> JobRequest:
    """An advertisement whose copy the text actor writes from the prompt of the picture."""
    order = {
        "kind": "ad",
        "prompt": arguments.prompt,
        "artist": arguments.artist,
        "steps": arguments.steps,
        "generation_id": generation_id,
    }
    deadline = datetime.now(UTC) + timedelta(seconds=AD_SECONDS)
    return JobRequest(job_id=job_id, kind="ad", slip=Ad.model_validate(order).slip(job_id), deadline=deadline, original_request=order)


def image_data(arguments: Namespace, lora: str | None) -> dict[str, Any]:
    """The `data` of an order. A size in pixels is passed as a parameter of form A."""
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
