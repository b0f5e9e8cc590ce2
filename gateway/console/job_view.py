"""What a page shows of one job: its course, and its pictures with how they were made."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from fastapi import Request

from contracts.claim import Claim
from contracts.job import Job, JobEvents
from gateway.callers import tenant_of
from gateway.console.course import Course
from gateway.console.sessions import PATH
from gateway.files import SHOWN, claims_in, files_of

VERDICTS = ("is_valid", "relevance_score", "on_brief", "occlusion", "contrast_ok", "cta_present", "analysis", "issues")


@dataclass(frozen=True)
class Picture:
    name: str
    href: str
    claim: Claim
    seed: int | None = None


@dataclass(frozen=True)
class JobView:
    job: Job
    course: Course

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of the result, or the last that a step has made on the way."""
        results = [self.course.result, *(leg.result for leg in reversed(self.course.legs.values()))]
        for result in results:
            found = {name_of(claim): claim for claim in claims_in(result.get("files") or result.get("images")) if claim.media_type in SHOWN}
            if found:
                seeds = self.seeds
                return [
                    Picture(name, f"{PATH}/jobs/{self.job.job_id}/files/{quote(name)}", claim, seeds[i] if i < len(seeds) else None)
                    for i, (name, claim) in enumerate(found.items())
                ]
        return []

    @property
    def prompt(self) -> str:
        order = self.course.order or {}
        return str(order.get("prompt") or self.job.kind or "")

    @property
    def drawn(self) -> dict[str, Any]:
        """What the last image step says of itself."""
        return next((leg.result for leg in reversed(self.course.legs.values()) if leg.step == "image" and leg.result), {})

    @property
    def seeds(self) -> list[int]:
        first = (self.drawn.get("metadata") or {}).get("seed")
        return self.drawn.get("seeds") or ([first] if first is not None else [])

    @property
    def facts(self) -> dict[str, Any]:
        """How the pictures were made, by name."""
        order, drawn = self.course.order or {}, self.drawn
        metadata = drawn.get("metadata") or {}
        wanted = ("negative_prompt", "scheduler", "artist", "text", "model")
        facts = {name: order[name] for name in wanted if order.get(name)} | metadata | (drawn.get("made_with") or {})
        if drawn.get("largest_batch", 1) > 1:
            facts["largest_batch"] = drawn["largest_batch"]
        return {name: value for name, value in facts.items() if value not in (None, "", [], {})}

    @property
    def opinion(self) -> dict[str, Any]:
        """What a model says of the picture, the last word on each matter."""
        said: dict[str, Any] = {}
        for leg in self.course.legs.values():
            if leg.step in ("validate", "judge"):
                said |= {name: leg.result[name] for name in VERDICTS if leg.result.get(name) is not None}
        return said

    @property
    def evidence(self) -> dict[str, Any]:
        """What was measured."""
        measured: dict[str, Any] = {}
        for leg in self.course.legs.values():
            if leg.step == "overlay":
                measured |= {name: leg.result[name] for name in ("contrast_ratio", "contrast_required") if name in leg.result}
            if leg.step == "judge":
                measured |= leg.result.get("evidence") or {}
        return {name: value for name, value in measured.items() if value is not None}

    @property
    def files(self) -> dict[str, Claim]:
        return files_of(self.job)


def name_of(claim: Claim) -> str:
    return unquote(urlsplit(claim.uri).path).rpartition("/")[2]


async def look_at(request: Request, job_id: str) -> JobView:
    """Raises ReplyFault("job-unknown"), ReplyTimeout."""
    counter = request.app.state.counter
    job = await counter.job(job_id, tenant_of(request))
    events = JobEvents.model_validate(await counter.ask("job.events", job_id=job_id)).events
    return JobView(job, Course.of(events))
