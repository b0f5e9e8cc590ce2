"""The command and the result of each step; the bus builds the next command of a slip from these tables."""

from collections.abc import Mapping
from typing import Literal, get_args

from contracts.consult import Consult, ConsultDone
from contracts.image import Image, ImageDone
from contracts.judge import Judge, JudgeDone
from contracts.moderate import Moderate, ModerateDone
from contracts.overlay import Overlay, OverlayDone
from contracts.responses import RunResponse
from contracts.text import Text, TextDone
from contracts.upload import Upload, UploadDone
from contracts.validate import Validate, ValidateDone
from contracts.watermark import Watermark, WatermarkDone
from contracts.webhook import Webhook, WebhookDone
from contracts.wire import Command, Result, Step

COMMANDS: Mapping[str, type[Command]] = {
    Step.IMAGE: Image,
    Step.WATERMARK: Watermark,
    Step.UPLOAD: Upload,
    Step.WEBHOOK: Webhook,
    Step.CONSULT: Consult,
    Step.VALIDATE: Validate,
    Step.JUDGE: Judge,
    Step.OVERLAY: Overlay,
    Step.TEXT: Text,
    Step.MODERATE: Moderate,
}

RESULTS: Mapping[str, type[Result]] = {
    Step.IMAGE: ImageDone,
    Step.WATERMARK: WatermarkDone,
    Step.UPLOAD: UploadDone,
    Step.WEBHOOK: WebhookDone,
    Step.CONSULT: ConsultDone,
    Step.VALIDATE: ValidateDone,
    Step.JUDGE: JudgeDone,
    Step.OVERLAY: OverlayDone,
    Step.TEXT: TextDone,
    Step.MODERATE: ModerateDone,
}

ClientStep = Literal["image", "watermark", "upload", "consult", "validate", "judge", "overlay", "text", "moderate"]
CLIENT_STEPS: tuple[str, ...] = get_args(ClientStep)
"""The steps that the itinerary of a client may name. The webhook acts in our name at the backend, so only a standard itinerary has it."""

EVENT_STEPS: tuple[str, ...] = ("ledger", "dead-letters", "variants")
"""The actors whose messages are events."""

SINGLE_COMMANDS: Mapping[str, type[Command]] = {"response.run": RunResponse}
"""Commands that are jobs of their own: no slip may name their steps."""

DEAD_LETTERING_STEPS: tuple[str, ...] = (*COMMANDS, *SINGLE_COMMANDS, *EVENT_STEPS, "image_generation")
"""Whose dead letters are ingested: the steps, the actors of events, and the adapter of the foreign queue."""
