"""The webhook step: report the state of an image generation to the backend. `actors/webhooks/webhook_request.py` builds the bodies."""

from typing import Any, Literal

from pydantic import Field

from contracts.event import Progress
from contracts.fault import Fault
from contracts.wire import Command, Result


class Webhook(Command):
    """Send a webhook. `progress` may be dropped but never follows `complete`; `failed` is sent once, on final failure only."""

    kind: Literal["progress", "complete", "failed"]
    generation_id: int
    base_url: str | None = Field(None, description="Used only when its host is on the allow list; otherwise `BACKEND_API_URL`.")
    progress: Progress | None = None
    result_url: str | None = None
    result_urls: list[str] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict)
    prompt_tags: list[str] = Field(default_factory=list, description="Added to the metadata of `complete`.")
    lora_missing: bool = Field(False, description="Added to the metadata of `complete` when true.")
    signature_missing: bool = Field(False, description="Added to the metadata of `complete` when true.")
    signature_left_out: str = Field("", description="Added to the metadata of `complete` when not empty.")
    fault: Fault | None = None


class WebhookDone(Result):
    """Whether the backend accepted the webhook."""

    kind: Literal["progress", "complete", "failed"] | None = None
    delivered: bool
    status: int | None = Field(None, description="The HTTP status of the backend's response.")
    reason: str | None = Field(None, description="Why it was not delivered.")
