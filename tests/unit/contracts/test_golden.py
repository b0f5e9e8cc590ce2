"""Every released message can be parsed without loss. Files are added to tests/golden, never changed or removed."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
from pydantic import BaseModel

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
from contracts.embed import Embed, EmbedDone, EmbedStatus, GetEmbedStatus
from contracts.event import Event
from contracts.fault import Fault
from contracts.image import Image, ImageDone
from contracts.image_generation import FlatOrder, NestedOrder
from contracts.job import ClaimJob, GetJob, GetJobEvents, Job, JobClaimed, JobEvents, Jobs, ListJobs
from contracts.judge import Judge, JudgeDone
from contracts.moderate import Moderate, ModerateDone
from contracts.overlay import Overlay, OverlayDone
from contracts.responses import (
    CancelResponse,
    CreateResponse,
    DeleteResponse,
    GetResponse,
    GetResponseEvents,
    InputItems,
    ListInputItems,
    ResponseDeleted,
    ResponseEvents,
    ResponseRan,
    RunResponse,
    StoredResponse,
)
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
    "embed.v1": Embed,
    "embed.done.v1": EmbedDone,
    "embed.status.v1": GetEmbedStatus,
    "embed.status.done.v1": EmbedStatus,
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
    "image.v1.edit": Image,
    "image.v1.control": Image,
    "image.done.v1.family": ImageDone,
    "watermark.v1.format": Watermark,
    "watermark.done.v1.thumbnails": WatermarkDone,
    "webhook.v1.complete-many": Webhook,
    "webhook.done.v1.undelivered": WebhookDone,
    "overlay.v1": Overlay,
    "overlay.done.v1": OverlayDone,
    "moderate.v1": Moderate,
    "moderate.done.v1": ModerateDone,
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
    "response.create.v1": CreateResponse,
    "response.create.done.v1": StoredResponse,
    "response.run.v1": RunResponse,
    "response.run.done.v1": ResponseRan,
    "response.get.v1": GetResponse,
    "response.get.done.v1": StoredResponse,
    "response.events.v1": GetResponseEvents,
    "response.events.done.v1": ResponseEvents,
    "response.cancel.v1": CancelResponse,
    "response.cancel.done.v1": StoredResponse,
    "response.delete.v1": DeleteResponse,
    "response.delete.done.v1": ResponseDeleted,
    "response.input-items.v1": ListInputItems,
    "response.input-items.done.v1": InputItems,
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


LOST = "<lost>"
CONVERTED_FIELDS = {("watermark.v1", "signature.opacity"): 128 / 255}
"""(message, field) to the value that replaces the older form in the released message."""
TYPED_MAPS = frozenset({"versions", "made_with", "states", "checked_by"})
"""Fields whose keys are data and whose values have one type: they cannot hold an unknown field."""
UNKNOWN_FIELD = {"a": [1]}


def changed_fields(released: Any, written: Any, path: str = "") -> dict[str, Any]:
    """Each field of `released` whose type or value is another in `written`, with its new value or LOST. Added fields are allowed."""
    if type(released) is not type(written):
        return {path: written}
    if isinstance(released, dict):
        pairs = {f"{path}.{name}".lstrip("."): (value, written.get(name, LOST)) for name, value in released.items()}
    elif isinstance(released, list) and len(released) == len(written):
        pairs = {f"{path}[{index}]": pair for index, pair in enumerate(zip(released, written, strict=True))}
    else:
        return {} if released == written else {path: written}
    return {name: value for field, pair in pairs.items() for name, value in changed_fields(*pair, field).items()}


def with_unknown_fields(value: Any) -> Any:
    """`value` with an unknown field in every object."""
    if isinstance(value, list):
        return [with_unknown_fields(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {name: field if name in TYPED_MAPS else with_unknown_fields(field) for name, field in value.items()}
    return fields | {"from_the_future": UNKNOWN_FIELD}


def unknown_fields(value: Any) -> list[str]:
    """The names of fields that the models in `value` do not declare."""
    if isinstance(value, list):
        return [name for item in value for name in unknown_fields(item)]
    if not isinstance(value, BaseModel):
        return []
    return [*(value.model_extra or {}), *(name for field in type(value).model_fields for name in unknown_fields(getattr(value, field)))]


@pytest.mark.parametrize("name", READERS)
def test_released_message_is_parsed_without_loss(name: str) -> None:
    released = load_golden(name)
    converted = {field: value for (message, field), value in CONVERTED_FIELDS.items() if message == name}
    assert changed_fields(released, READERS[name].model_validate(released).model_dump(mode="json")) == converted


@pytest.mark.parametrize("name", READERS)
def test_fields_of_released_message_are_declared(name: str) -> None:
    """A renamed or removed field would be preserved as an unknown one, but not read."""
    assert unknown_fields(READERS[name].model_validate(load_golden(name))) == []


@pytest.mark.parametrize("name", READERS)
def test_unknown_field_is_preserved(name: str) -> None:
    """In the message and in every object inside it: an older reader must not lose the fields of a newer writer."""
    newer = with_unknown_fields(load_golden(name))
    written = READERS[name].model_validate(newer).model_dump(mode="json")
    assert written["from_the_future"] == UNKNOWN_FIELD
    assert [field for field in changed_fields(newer, written) if (name, field) not in CONVERTED_FIELDS] == []


@pytest.mark.parametrize(
    ("written", "changes"),
    [
        ({"a": {"b": 1}, "c": [1, {"d": "x"}], "added": None}, {}),
        ({"c": [1, {"d": "x"}]}, {"a": LOST}),
        ({"a": {}, "c": [1, {"d": "x"}]}, {"a.b": LOST}),
        ({"a": {"b": 2}, "c": [1, {"d": "x"}]}, {"a.b": 2}),
        ({"a": {"b": "1"}, "c": [1, {"d": "x"}]}, {"a.b": "1"}),
        ({"a": {"b": True}, "c": [1, {"d": "x"}]}, {"a.b": True}),
        ({"a": {"b": None}, "c": [1, {"d": "x"}]}, {"a.b": None}),
        ({"a": {"b": 1}, "c": [1]}, {"c": [1]}),
        ({"a": {"b": 1}, "c": [{"d": "x"}, 1]}, {"c[0]": {"d": "x"}, "c[1]": 1}),
        ({"a": {"b": 1}, "c": [1, {"d": "y"}]}, {"c[1].d": "y"}),
    ],
)
def test_comparison_finds_each_change(written: Any, changes: dict[str, Any]) -> None:
    """A lost field, another value, another type, a shorter list, another order."""
    assert changed_fields({"a": {"b": 1}, "c": [1, {"d": "x"}]}, written) == changes


def test_every_golden_message_has_a_reader() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(READERS)


def contract_models() -> Iterator[type[WireModel]]:
    """Every command and result of the package."""
    for module in iter_modules(contracts.__path__, "contracts."):
        for value in vars(import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Command | Result) and value not in (Command, Result):
                yield value


UNRELEASED: frozenset[str] = frozenset()
"""Names of contracts that no release contains, and that may still change."""


def test_every_contract_has_a_golden_message() -> None:
    readers = tuple(READERS.values())
    without = {model.__name__ for model in contract_models() if not any(issubclass(reader, model) for reader in readers)}
    assert without == UNRELEASED, "add tests/golden/<type>.json and its reader, or name the contract in UNRELEASED"
