"""The steps and what each takes and gives: the table from which a slip builds the next command."""

from contracts.consult import Consult, ConsultDone
from contracts.image import Image, ImageDone
from contracts.judge import Judge, JudgeDone
from contracts.overlay import Overlay, OverlayDone
from contracts.text import Text, TextDone
from contracts.upload import Upload, UploadDone
from contracts.validate import Validate, ValidateDone
from contracts.watermark import Watermark, WatermarkDone
from contracts.webhook import Webhook, WebhookDone
from contracts.wire import Command, Result, Step

COMMANDS: dict[str, type[Command]] = {
    Step.IMAGE: Image,
    Step.WATERMARK: Watermark,
    Step.UPLOAD: Upload,
    Step.WEBHOOK: Webhook,
    Step.CONSULT: Consult,
    Step.VALIDATE: Validate,
    Step.JUDGE: Judge,
    Step.OVERLAY: Overlay,
    Step.TEXT: Text,
}

RESULTS: dict[str, type[Result]] = {
    Step.IMAGE: ImageDone,
    Step.WATERMARK: WatermarkDone,
    Step.UPLOAD: UploadDone,
    Step.WEBHOOK: WebhookDone,
    Step.CONSULT: ConsultDone,
    Step.VALIDATE: ValidateDone,
    Step.JUDGE: JudgeDone,
    Step.OVERLAY: OverlayDone,
    Step.TEXT: TextDone,
}

DEAD_LETTERING_STEPS: tuple[str, ...] = (*COMMANDS, "ledger", "dead-letters", "image_generation")
"""Whoever has a queue of dead letters: the steps, the keepers of records, and the adapter of the foreign queue."""
