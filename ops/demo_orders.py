"""What the demo orders: a picture, in the form that the real backend publishes, or an advertisement, as the gateway places one."""

from argparse import Namespace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bus.orders import Order, place
from bus.outbox import Outbox
from gateway.orders import Ad
from ops.backend import order_letter

AD_SECONDS = 600.0


async def send(arguments: Namespace, generation_id: int, job_id: str, models: Path, outbox: Outbox) -> None:
    if arguments.ad:
        await place(ad(arguments, generation_id, job_id), outbox)
    else:
        await outbox.post(order_letter(generation_id, image_data(arguments, (models / "loras" / "tiny-neat.safetensors").as_uri())))


def ad(arguments: Namespace, generation_id: int, job_id: str) -> Order:
    """The writer is asked for a line about the picture's prompt."""
    wanted = {
        "kind": "ad",
        "prompt": arguments.prompt,
        "artist": arguments.artist,
        "steps": arguments.steps,
        "generation_id": generation_id,
    }
    deadline = datetime.now(UTC) + timedelta(seconds=AD_SECONDS)
    return Order(job_id=job_id, kind="ad", slip=Ad.model_validate(wanted).slip(job_id), deadline=deadline, said=wanted)


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
