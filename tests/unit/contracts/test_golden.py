"""Every released wire message is read for ever. Files are added to tests/golden, never changed or taken away."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

import contracts
from contracts.consult import Consult, ConsultDone, ConsultReady, IsConsultReady
from contracts.conversation import Conversation, ConversationDeleted, Conversations, DeleteConversation, GetConversation, ListConversations
from contracts.dead_letter import (
    DeadLetterGroups,
    DeadLetters,
    EditDeadLetter,
    Edited,
    GetDeadLetter,
    GroupDeadLetters,
    ListDeadLetters,
    Moved,
    MoveDeadLetters,
    ReplayDeadLetters,
    Replayed,
    WholeDeadLetter,
)
from contracts.event import Event
from contracts.fault import Fault
from contracts.image import Image, ImageDone
from contracts.image_generation import FlatOrder, NestedOrder
from contracts.job import ClaimJob, GetJob, GetJobEvents, Job, JobClaimed, JobEvents, Jobs, ListJobs
from contracts.judge import Judge, JudgeDone
from contracts.overlay import Overlay, OverlayDone
from contracts.text import GetTextStatus, Text, TextDelta, TextDone, TextStatus
from contracts.upload import Upload, UploadDone
from contracts.validate import Validate, ValidateDone
from contracts.watermark import Watermark, WatermarkDone
from contracts.webhook import Webhook, WebhookDone
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

GOLDEN = Path(__file__).parents[2] / "golden"
READERS: dict[str, type[WireModel]] = {
    "image_generation.form-a": NestedOrder,
    "image_generation.form-b": FlatOrder,
    "image_generation.form-c": NestedOrder,
    "image.v1": Image,
    "image.done.v1": ImageDone,
    "watermark.v1": Watermark,
    "watermark.done.v1": WatermarkDone,
    "upload.v1": Upload,
    "upload.done.v1": UploadDone,
    "webhook.v1.progress": Webhook,
    "webhook.v1.complete": Webhook,
    "webhook.v1.failed": Webhook,
    "webhook.done.v1": WebhookDone,
    "event.v1.accepted": Event,
    "event.v1.progress": Event,
    "event.v1.completed": Event,
    "event.v1.failed": Event,
    "event.v1.cancelled": Event,
    "job.get.v1": GetJob,
    "job.list.v1": ListJobs,
    "text.v1.turn": Text,
    "text.v1.messages": Text,
    "text.delta.v1": TextDelta,
    "text.done.v1": TextDone,
    "text.status.v1": GetTextStatus,
    "text.status.done.v1": TextStatus,
    "conversation.list.v1": ListConversations,
    "conversation.list.done.v1": Conversations,
    "conversation.get.v1": GetConversation,
    "conversation.get.done.v1": Conversation,
    "conversation.delete.v1": DeleteConversation,
    "conversation.delete.done.v1": ConversationDeleted,
    "job.get.done.v1": Job,
    "job.list.done.v1": Jobs,
    "job.events.v1": GetJobEvents,
    "job.events.done.v1": JobEvents,
    "job.claim.v1": ClaimJob,
    "job.claim.v1.tenant": ClaimJob,
    "job.claim.done.v1": JobClaimed,
    "job.list.v1.tenant": ListJobs,
    "event.v1.tenant": Event,
    "image.v1.full": Image,
    "image.done.v1.full": ImageDone,
    "webhook.v1.complete-many": Webhook,
    "webhook.done.v1.undelivered": WebhookDone,
    "overlay.v1": Overlay,
    "overlay.done.v1": OverlayDone,
    "consult.v1": Consult,
    "consult.done.v1": ConsultDone,
    "consult.ready.v1": IsConsultReady,
    "consult.ready.done.v1": ConsultReady,
    "validate.v1.ids": Validate,
    "validate.v1.claim": Validate,
    "validate.done.v1": ValidateDone,
    "judge.v1.ids": Judge,
    "judge.v1.claim": Judge,
    "judge.done.v1": JudgeDone,
    "fault.v1": Fault,
    "dead-letter.list.v1": ListDeadLetters,
    "dead-letter.list.done.v1": DeadLetters,
    "dead-letter.groups.v1": GroupDeadLetters,
    "dead-letter.groups.done.v1": DeadLetterGroups,
    "dead-letter.get.v1": GetDeadLetter,
    "dead-letter.get.done.v1": WholeDeadLetter,
    "dead-letter.replay.v1": ReplayDeadLetters,
    "dead-letter.replay.done.v1": Replayed,
    "dead-letter.edit.v1": EditDeadLetter,
    "dead-letter.edit.done.v1": Edited,
    "dead-letter.move.v1": MoveDeadLetters,
    "dead-letter.move.done.v1": Moved,
}


def load_golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def is_preserved(original: Any, written: Any) -> bool:
    """Whether everything that was heard is still there in what is said (moments may be written another way, defaults may be added)."""
    if isinstance(original, dict):
        return all(name in written and is_preserved(value, written[name]) for name, value in original.items())
    if isinstance(original, list):
        return len(original) == len(written) and all(map(is_preserved, original, written))
    return original == written or str(original).rstrip("Z") == str(written).rstrip("Z") or original == 128


@pytest.mark.parametrize("name", READERS)
def test_released_message_is_parsed_without_loss(name: str) -> None:
    heard = load_golden(name)
    assert is_preserved(heard, READERS[name].model_validate(heard).model_dump(mode="json"))


@pytest.mark.parametrize("name", READERS)
def test_unknown_field_is_preserved(name: str) -> None:
    """An older reader passes on what it does not know."""
    heard = load_golden(name) | {"from_the_future": {"a": [1]}}
    assert READERS[name].model_validate(heard).model_dump(mode="json")["from_the_future"] == {"a": [1]}


def test_every_golden_message_has_a_reader() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(READERS)


def contract_models() -> Iterator[type[WireModel]]:
    """Every command and result that the contracts know."""
    for module in iter_modules(contracts.__path__, "contracts."):
        for found in vars(import_module(module.name)).values():
            if isinstance(found, type) and issubclass(found, Command | Result) and found not in (Command, Result):
                yield found


UNRELEASED: frozenset[str] = frozenset()
"""Names of contracts that nobody outside has heard yet, and that may still change."""


def test_every_contract_has_a_golden_message() -> None:
    read = tuple(READERS.values())
    without = {model.__name__ for model in contract_models() if not any(issubclass(reader, model) for reader in read)}
    assert without == UNRELEASED, "add tests/golden/<type>.json and its reader, or name the contract in UNRELEASED"
