"""The files of a job: the claims in its results, read from the store and verified."""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from fastapi import Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import ValidationError

from bus.errors import PermanentError, TemporaryError
from contracts.claim import Claim
from contracts.job import Job
from gateway.problems import HttpProblem
from gateway.services import Services, services_of

CHUNK_BYTES = 1 << 18
INLINE_MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/webp"})
"""Types that are sent with `Content-Disposition: inline`; other files are sent as attachments."""


def job_files(job: Job) -> dict[str, Claim]:
    """The files of a job by name; of two with the same name, the later one."""
    return {file_name(claim): claim for result in [*(step.result for step in job.steps), job.result] for claim in find_claims(result)}


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
    headers = {"ETag": f'"{claim.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    data = await _read_claim(services_of(request), claim, name)
    if isinstance(data, Response):
        return data
    disposition = "inline" if claim.media_type in INLINE_MEDIA_TYPES else f'attachment; filename="{name}"'
    headers |= {"Content-Disposition": disposition, "Content-Length": str(len(data))}
    return StreamingResponse(_chunks(data), headers=headers, media_type=claim.media_type)


async def _read_claim(services: Services, claim: Claim, name: str) -> bytes | Response:
    """The bytes; or a redirect to a public https URL that this gateway's store cannot read."""
    limit = services.settings.max_file_bytes
    if claim.size > limit:
        raise HttpProblem(413, "file-too-large", f"{name} has {claim.size} bytes; GATEWAY_MAX_FILE_BYTES is {limit}")
    store = services.require_store()
    try:
        async with services.file_read_slots:
            return await store.read(claim)
    except TemporaryError as error:
        raise HttpProblem(503, "the store is away", str(error), {"Retry-After": "5"}) from error
    except PermanentError as error:
        if error.code == "claim-refused" and claim.uri.startswith("https://"):
            return RedirectResponse(claim.uri, 307)
        raise HttpProblem(404 if error.code != "claim-corrupt" else 502, error.code, str(error)) from error


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
