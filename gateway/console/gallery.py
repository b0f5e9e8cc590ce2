"""The page Gallery: the pictures that were made for the caller, the newest first; and the pictures of the jobs in a list."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from contracts.identifiers import quote_id
from contracts.job import Job, Jobs
from gateway.callers import caller_of, tenant_of
from gateway.console.guard import ConsoleRoute
from gateway.console.rendering import render_page
from gateway.jobs.files import INLINE_MEDIA_TYPES, file_name, find_claims
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.services import services_of

router = APIRouter(prefix=f"{CONSOLE_PATH}/gallery", route_class=ConsoleRoute, include_in_schema=False)

PAGE_SIZE = 24
"""Jobs; each has one to four pictures."""


@dataclass(frozen=True)
class ListedPicture:
    """A picture of a job's result. `thumbnail`: the path of its small JPEG; of the picture itself where the job has none."""

    job: Job
    name: str
    thumbnail: str

    @property
    def start_path(self) -> str:
        """The order form with this picture as the one to start from."""
        return start_path(self.job.job_id, self.name)


@router.get("")
async def show_gallery(request: Request, before: Annotated[str, Query(max_length=40)] = "") -> Response:
    """The caller's own pictures, an operator's as well. `before`: creation time of the last job of the previous page."""
    query = {"pictures": True, "tenant": caller_of(request), "before": before or None, "limit": PAGE_SIZE}
    jobs = Jobs.model_validate(await services_of(request).commands.query("job.list", query, tenant=tenant_of(request))).jobs
    older = jobs[-1].created_at.isoformat() if len(jobs) == PAGE_SIZE else None
    pictures = [picture for job in jobs for picture in listed_pictures(job)]
    return render_page(request, "gallery.html", pictures=pictures, older=older, before=before)


def listed_pictures(job: Job) -> list[ListedPicture]:
    """The pictures of the job's result, with their thumbnails where each has one."""
    result = job.result or {}
    claims = find_claims(result.get("files") or result.get("images"))
    names = [file_name(claim) for claim in claims if claim.media_type in INLINE_MEDIA_TYPES]
    thumbnails = [file_name(claim) for claim in find_claims(result.get("thumbnails"))]
    shown = thumbnails if len(thumbnails) == len(names) else names
    return [ListedPicture(job, name, file_path(job.job_id, small)) for name, small in zip(names, shown, strict=True)]


def file_path(job_id: str, name: str) -> str:
    return f"{CONSOLE_PATH}/jobs/{quote_id(job_id)}/files/{quote(name, safe='')}"


def start_path(job_id: str, name: str) -> str:
    return f"{CONSOLE_PATH}/make?source={quote(job_id, safe='')}&file={quote(name, safe='')}"
