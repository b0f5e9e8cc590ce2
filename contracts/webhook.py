"""The webhook step: tell the backend how an image generation goes. The bodies sent are in `actors/webhooks/webhook_request.py`."""

from typing import Any, Literal

from pydantic import Field

from contracts.event import Progress
from contracts.fault import Fault
from contracts.wire import Command, Result


class Webhook(Command):
    """`progress` may be dropped but never comes after `complete`; `failed` is sent once, on final failure only."""

    kind: Literal["progress", "complete", "failed"]
    generation_id: int
    base_url: str | None = Field(None, description="Counts only when its host is on the allow list; else `BACKEND_API_URL`.")
    progress: Progress | None = None
    result_url: str | None = None
    result_urls: list[str] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict)
    prompt_tags: list[str] = Field(default_factory=list, description="Goes into the metadata of `complete`.")
    fault: Fault | None = None


class WebhookDone(Result):
    kind: Literal["progress", "complete", "failed"] | None = None
    delivered: bool
    status: int | None = Field(None, description="HTTP status of the backend's answer.")
    reason: str | None = Field(None, description="Why it was not delivered, when it was not.")
