"""What a page shows of one job: its course, and its pictures with how they were made."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from fastapi import Request

from contracts.claim import Claim
from contracts.job import Job, JobEvents
from gateway.callers import tenant_of
from gateway.console.job_progress import JobProgress
from gateway.jobs.files import INLINE_MEDIA_TYPES, find_claims, job_files
from gateway.middleware.sessions import CONSOLE_PATH

VERDICT_FIELDS = ("is_valid", "relevance_score", "on_brief", "occlusion", "contrast_ok", "cta_present", "analysis", "issues")


@dataclass(frozen=True)
class Picture:
    name: str
    href: str
    claim: Claim
    seed: int | None = None


@dataclass(frozen=True)
class JobView:
    job: Job
    progress: JobProgress

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of the result, or the last that a step has made on the way."""
        results = [self.progress.result, *(leg.result for leg in reversed(self.progress.steps.values()))]
        for result in results:
            found = {
                file_name(claim): claim
                for claim in find_claims(result.get("files") or result.get("images"))
                if claim.media_type in INLINE_MEDIA_TYPES
            }
            if found:
                seeds = self.seeds
                return [
                    Picture(name, f"{CONSOLE_PATH}/jobs/{self.job.job_id}/files/{quote(name)}", claim, seeds[i] if i < len(seeds) else None)
                    for i, (name, claim) in enumerate(found.items())
                ]
        return []

    @property
    def prompt(self) -> str:
        order = self.progress.order or {}
        return str(order.get("prompt") or self.job.kind or "")

    @property
    def image_result(self) -> dict[str, Any]:
        """What the last image step says of itself."""
        return next((leg.result for leg in reversed(self.progress.steps.values()) if leg.step == "image" and leg.result), {})

    @property
    def seeds(self) -> list[int]:
        first = (self.image_result.get("metadata") or {}).get("seed")
        return self.image_result.get("seeds") or ([first] if first is not None else [])

    @property
    def generation_details(self) -> dict[str, Any]:
        """How the pictures were made, by name."""
        order, drawn = self.progress.order or {}, self.image_result
        metadata = drawn.get("metadata") or {}
        wanted = ("negative_prompt", "scheduler", "artist", "text", "model")
        facts = {name: order[name] for name in wanted if order.get(name)} | metadata | (drawn.get("made_with") or {})
        if drawn.get("largest_batch", 1) > 1:
            facts["largest_batch"] = drawn["largest_batch"]
        return {name: value for name, value in facts.items() if value not in (None, "", [], {})}

    @property
    def verdict(self) -> dict[str, Any]:
        """What a model says of the picture, the last word on each matter."""
        said: dict[str, Any] = {}
        for leg in self.progress.steps.values():
            if leg.step in ("validate", "judge"):
                said |= {name: leg.result[name] for name in VERDICT_FIELDS if leg.result.get(name) is not None}
        return said

    @property
    def evidence(self) -> dict[str, Any]:
        """What was measured."""
        measured: dict[str, Any] = {}
        for leg in self.progress.steps.values():
            if leg.step == "overlay":
                measured |= {name: leg.result[name] for name in ("contrast_ratio", "contrast_required") if name in leg.result}
            if leg.step == "judge":
                measured |= leg.result.get("evidence") or {}
        return {name: value for name, value in measured.items() if value is not None}

    @property
    def files(self) -> dict[str, Claim]:
        return job_files(self.job)


def file_name(claim: Claim) -> str:
    return unquote(urlsplit(claim.uri).path).rpartition("/")[2]


async def load_job_view(request: Request, job_id: str) -> JobView:
    """Raises ReplyFault("job-unknown"), ReplyTimeout."""
    jobs = request.app.state.jobs
    job = await jobs.get_job(job_id, tenant_of(request))
    events = JobEvents.model_validate(await jobs.query("job.events", job_id=job_id)).events
    return JobView(job, JobProgress.from_events(events))
