"""The events of the demo's job, and the report that is made of them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from contracts.event import Event, EventKind
from ops.commands.demo_backend import FakeBackend
from ops.commands.demo_output import is_itinerary_step
from ops.commands.demo_phases import PhaseClock

AD_FIELDS = ("text", "is_valid", "relevance_score", "contrast_ratio", "on_brief", "occlusion", "contrast_ok", "cta_present")


@dataclass
class DemoJob:
    """The events of the job, in the order of their arrival."""

    job_id: str
    events: list[Event] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return bool(self.events) and self.events[-1].step == "job" and self.events[-1].kind is not EventKind.ACCEPTED

    @property
    def ad_fields(self) -> dict[str, Any]:
        """The copy, verdicts and measurements of an advertisement, and which models saw it; empty for other orders."""
        result = self.events[-1].result if self.is_finished else None
        if not result or "text" not in result:
            return {}
        critics = {event.result["seen_by"] for event in self.events if event.result and event.result.get("seen_by")}
        return {name: result[name] for name in AD_FIELDS if name in result} | {"seen_by": sorted(critics)}

    @property
    def uploaded_image(self) -> dict[str, Any] | None:
        """The claim of the uploaded picture."""
        uploads = [event.result for event in self.events if event.step == "upload" and event.result]
        return uploads[-1]["files"][0] if uploads else None

    def report(self, backend: FakeBackend, clock: PhaseClock) -> dict[str, Any]:
        """The JSON document of the command. `ok`: the stored picture has the sha256 of its claim, and one completion webhook arrived."""
        picture = self.uploaded_image or {}
        path = Path(unquote(urlsplit(picture.get("uri", "")).path)) if picture else None
        steps = [{"step": event.step, "seconds": event.seconds} for event in self.events if is_itinerary_step(event)]
        report: dict[str, Any] = {
            "ok": self._matches_claim(path, picture) and backend.completed,
            "job_id": self.job_id,
            "image_path": str(path) if path else None,
            "width": picture.get("width"),
            "height": picture.get("height"),
            "sha256": picture.get("sha256"),
            "webhooks": backend.webhooks,
            "steps": steps,
            "seconds": clock.total_seconds,
            "phases": clock.seconds,
        }
        if ad := self.ad_fields:
            report["ad"] = ad
        fault = next((event.fault for event in self.events if event.fault), None)
        return report | ({"fault": fault.model_dump(exclude_none=True)} if fault else {})

    def _matches_claim(self, path: Path | None, picture: dict[str, Any]) -> bool:
        return path is not None and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == picture["sha256"]
