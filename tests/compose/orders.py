"""Runs inside the gateway's container: submits two orders to the gateway and checks the files in the bucket."""

import asyncio
import io
import json
import sys
import urllib.request
from typing import Any

from PIL import Image

from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts.claim import Claim

SIGN_AND_STORE = [
    {"step": "watermark", "arguments": {"artist": "김작가"}},
    {"step": "upload", "arguments": {"name": "compose-test"}},
]


async def store_picture() -> Claim:
    picture = io.BytesIO()
    Image.new("RGB", (256, 256), "teal").save(picture, "PNG")
    async with open_claim_store(StoreSettings()) as claims:
        return await claims.write(picture.getvalue(), media_type="image/png", width=256, height=256, tenant=None)


def run_order(key: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Submit an itinerary, wait for its job, and return the file that it uploaded."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    order = json.dumps({"kind": "itinerary", "stops": steps}).encode()
    request = urllib.request.Request("http://127.0.0.1:8080/jobs?wait=180", order, headers)
    with urllib.request.urlopen(request, timeout=200) as response:
        job = json.load(response)
    assert response.status == 200, job
    (file,) = job["result"]["files"]
    sys.stdout.write(json.dumps({"state": job["state"], "file": file["uri"], "size": file["size"]}) + "\n")
    return dict(file)


def main(key: str) -> None:
    claim = asyncio.run(store_picture())
    watermark, upload = SIGN_AND_STORE
    arguments = {"images": [claim.model_dump(mode="json", exclude_none=True)], **watermark["arguments"]}
    signed = run_order(key, [watermark | {"arguments": arguments}, upload])
    assert signed["size"] > 0
    assert signed["sha256"] != claim.sha256

    image = {"step": "image", "arguments": {"prompt": "a red circle on a blue background", "steps": 10, "seed": 7}}
    generated = run_order(key, [image, watermark, upload])
    assert (generated["width"], generated["height"]) == (512, 512)


main(sys.argv[1])
