"""What a page shows of one job: its progress, its pictures with their generation details, verdicts and measurements."""

from dataclasses import dataclass
from typing import Any

from fastapi import Request

from contracts.claim import Claim
from contracts.job import Job, JobEvents
from gateway.callers import tenant_of
from gateway.console.gallery import file_path, start_path
from gateway.console.job_progress import JobProgress
from gateway.jobs.files import INLINE_MEDIA_TYPES, file_name, find_claims, job_files, order_pictures
from gateway.services import services_of

ORDER_DETAILS = ("negative_prompt", "scheduler", "artist", "text", "model")
VERDICT_FIELDS = ("is_valid", "relevance_score", "on_brief", "occlusion", "contrast_ok", "cta_present", "analysis", "issues")
CONTRAST_FIELDS = ("contrast_ratio", "contrast_required")


@dataclass(frozen=True)
class JobPicture:
    href: str
    start_path: str
    claim: Claim
    seed: int | None = None


@dataclass(frozen=True)
class ConsoleJobView:
    job: Job
    progress: JobProgress

    @property
    def pictures(self) -> list[JobPicture]:
        """The pictures of the job's result, else those of the latest step that has any."""
        results = [self.progress.result, *(step.result for step in reversed(self.progress.steps.values()))]
        for result in results:
            claims = find_claims(result.get("files") or result.get("images"))
            images = {file_name(claim): claim for claim in claims if claim.media_type in INLINE_MEDIA_TYPES}
            if images:
                return [self._picture(index, name, claim) for index, (name, claim) in enumerate(images.items())]
        return []

    def _picture(self, index: int, name: str, claim: Claim) -> JobPicture:
        seeds = self.seeds
        job_id = self.job.job_id
        return JobPicture(file_path(job_id, name), start_path(job_id, name), claim, seeds[index] if index < len(seeds) else None)

    @property
    def prompt(self) -> str:
        order = self.progress.order or {}
        return str(order.get("prompt") or self.job.kind or "")

    @property
    def image_result(self) -> dict[str, Any]:
        """The result of the latest image step."""
        return next((step.result for step in reversed(self.progress.steps.values()) if step.step == "image" and step.result), {})

    @property
    def seeds(self) -> list[int]:
        """One for each picture. Results without `seeds` have at most the first in their metadata."""
        first = (self.image_result.get("metadata") or {}).get("seed")
        return self.image_result.get("seeds") or ([first] if first is not None else [])

    @property
    def generation_details(self) -> dict[str, Any]:
        """How the pictures were generated, by name: from the order and from the image step's result."""
        order, result = self.progress.order or {}, self.image_result
        details = {name: order[name] for name in ORDER_DETAILS if order.get(name)}
        details |= (result.get("metadata") or {}) | (result.get("made_with") or {})
        if result.get("largest_batch", 1) > 1:
            details["largest_batch"] = result["largest_batch"]
        return {name: value for name, value in details.items() if value not in (None, "", [], {})}

    @property
    def verdict(self) -> dict[str, Any]:
        """The verdict of the vision model by field; a later step overrides an earlier one."""
        verdict: dict[str, Any] = {}
        for step in self.progress.steps.values():
            if step.step in ("validate", "judge"):
                verdict |= {name: step.result[name] for name in VERDICT_FIELDS if step.result.get(name) is not None}
        return verdict

    @property
    def evidence(self) -> dict[str, Any]:
        """The measured values by name."""
        measured: dict[str, Any] = {}
        for step in self.progress.steps.values():
            if step.step == "overlay":
                measured |= {name: step.result[name] for name in CONTRAST_FIELDS if name in step.result}
            if step.step == "judge":
                measured |= step.result.get("evidence") or {}
        return {name: value for name, value in measured.items() if value is not None}

    @property
    def files(self) -> dict[str, Claim]:
        return job_files(self.job)

    @property
    def order_files(self) -> dict[str, Claim]:
        """Those of `order_pictures`. The order's client wrote their claims: the store decides whether it may read them."""
        return order_pictures(self.progress.order)


async def load_job_view(request: Request, job_id: str) -> ConsoleJobView:
    """Raises ReplyFault("job-unknown"), ReplyTimeout."""
    services = services_of(request)
    job = await services.jobs.get_job(job_id, tenant_of(request))
    reply = await services.commands.query("job.events", {"job_id": job_id}, tenant=tenant_of(request))
    own = [event for event in JobEvents.model_validate(reply).events if event.tenant == job.tenant]
    return ConsoleJobView(job, JobProgress.from_events(own))
