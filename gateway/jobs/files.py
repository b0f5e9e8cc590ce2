"""The files of a job: the claims in its results, read from the store and verified."""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from fastapi import Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import ValidationError

from bus.errors import PermanentError
from contracts.claim import Claim
from contracts.job import Job
from gateway.memory_budget import hold_bytes
from gateway.problems import HttpProblem
from gateway.services import services_of

CHUNK_BYTES = 1 << 18
INLINE_MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/webp"})
"""Types that are sent with `Content-Disposition: inline`; other files are sent as attachments."""
ORDER_PICTURES = ("edit.image", "edit.mask", "control.image")


def job_files(job: Job) -> dict[str, Claim]:
    """The files of a job by name; of two with the same name, the later one."""
    return {file_name(claim): claim for result in [*(step.result for step in job.steps), job.result] for claim in find_claims(result)}


def order_pictures(order: Mapping[str, Any] | None) -> dict[str, Claim]:
    """The pictures that an order starts from or follows, by their place in it, such as `edit.mask`: their file names may be the same."""
    found: dict[str, Claim] = {}
    for place in ORDER_PICTURES:
        step, part = place.split(".")
        arguments = (order or {}).get(step)
        claims = find_claims(arguments.get(part) if isinstance(arguments, dict) else None)
        if (claim := next(claims, None)) and claim.media_type.startswith("image/"):
            found[place] = claim
    return found


def file_name(claim: Claim) -> str:
    """The last segment of the claim's URI."""
    return unquote(urlsplit(claim.uri).path).rpartition("/")[2]


def find_claims(value: Any) -> Iterator[Claim]:
    """Every claim in a JSON value, at any depth."""
    if isinstance(value, dict) and {"uri", "sha256", "size"} <= value.keys():
        try:
            yield Claim.model_validate(value)
        except ValidationError:
            return
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from find_claims(inner)


async def file_response(request: Request, job: Job, name: str) -> Response:
    """Raises HttpProblem(404, 413, 502, 503)."""
    claim = job_files(job).get(name)
    if claim is None:
        raise HttpProblem(404, "file-unknown", f"the job has no file {name!r}; GET /jobs/{job.job_id} lists them", job_id=job.job_id)
    return await claim_response(request, job, claim, name, recorded=True)


async def claim_response(request: Request, job: Job, claim: Claim, name: str, *, recorded: bool) -> Response:
    """The bytes of a claim of the job, as a file. `recorded`: an actor wrote the claim, not the job's client.

    Raises HttpProblem(404, 413, 502, 503).
    """
    headers = {"ETag": f'"{claim.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    known = ",".join(request.headers.getlist("if-none-match"))
    if headers["ETag"] in known or known.strip() == "*":
        return Response(status_code=304, headers=headers)
    data = await _read_claim(request, job, claim, name, recorded=recorded)
    if isinstance(data, Response):
        return data
    headers |= {"Content-Disposition": content_disposition(claim.media_type, name), "Content-Length": str(len(data))}
    return StreamingResponse(_chunks(data), headers=headers, media_type=claim.media_type)


def content_disposition(media_type: str, name: str) -> str:
    """RFC 6266: a name that is not plain ASCII is given twice, reduced and as UTF-8."""
    if media_type in INLINE_MEDIA_TYPES:
        return "inline"
    plain = re.sub(r"[^A-Za-z0-9._ ~+@=-]", "_", name)
    return f'attachment; filename="{plain}"' + (f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else "")


async def _read_claim(request: Request, job: Job, claim: Claim, name: str, *, recorded: bool) -> bytes | Response:
    """The bytes, whose memory is reserved until they have been sent; or a redirect to an https URL that this store cannot read.

    They are read whole, so that their sha256 is checked before the first byte is sent. Raises TemporaryError.
    """
    services = services_of(request)
    limit = services.settings.max_file_bytes
    if claim.size > limit:
        raise HttpProblem(413, "file-too-large", f"{name} has {claim.size} bytes; GATEWAY_MAX_FILE_BYTES is {limit}")
    store = services.require_store()
    await hold_bytes(request, services.file_memory, claim.size)
    try:
        return await (store.read_recorded if recorded else store.read)(claim, tenant=job.tenant)
    except PermanentError as error:
        if recorded and error.code == "claim-refused" and claim.uri.startswith("https://"):
            return RedirectResponse(claim.uri, 307)
        raise HttpProblem(404 if error.code != "claim-corrupt" else 502, error.code, str(error)) from error


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
