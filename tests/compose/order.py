"""Run inside the gateway's container: orders from the gateway through the actors to the bucket and back."""

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


async def stored() -> Claim:
    picture = io.BytesIO()
    Image.new("RGB", (256, 256), "teal").save(picture, "PNG")
    async with open_claim_store(StoreSettings()) as claims:
        return await claims.write(picture.getvalue(), media_type="image/png", width=256, height=256)


def done(key: str, stops: list[dict[str, Any]]) -> dict[str, Any]:
    """The file that the job stored."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    order = json.dumps({"kind": "itinerary", "stops": stops}).encode()
    asked = urllib.request.Request("http://127.0.0.1:8080/jobs?wait=180", order, headers)
    with urllib.request.urlopen(asked, timeout=200) as answer:
        job = json.load(answer)
    assert answer.status == 200, job
    (file,) = job["result"]["files"]
    sys.stdout.write(json.dumps({"state": job["state"], "file": file["uri"], "size": file["size"]}) + "\n")
    return dict(file)


def main(key: str) -> None:
    claim = asyncio.run(stored())
    watermark, upload = SIGN_AND_STORE
    given = {"images": [claim.model_dump(mode="json", exclude_none=True)], **watermark["arguments"]}
    signed = done(key, [watermark | {"arguments": given}, upload])
    assert signed["size"] > 0
    assert signed["sha256"] != claim.sha256

    drawn = {"step": "image", "arguments": {"prompt": "a red circle on a blue background", "steps": 10, "seed": 7}}
    painted = done(key, [drawn, watermark, upload])
    assert (painted["width"], painted["height"]) == (512, 512)


main(sys.argv[1])
