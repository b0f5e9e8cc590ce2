"""The settings book knows every setting, with a unit and a meaning, and its defaults are what the classes say."""

import json
import os
from io import StringIO

import pytest
from dotenv import dotenv_values

from ops.cli import main
from ops.docgen.configuration import env_example
from ops.docgen.generate import ROOT
from ops.docgen.settings_catalog import all_settings, settings_classes

BOOK = {setting.name: setting for setting in all_settings()}


def test_every_settings_class_is_in_catalog() -> None:
    said = {
        line.split("(")[0].removeprefix("class ")
        for room in ("bus", "actors", "gateway", "ops")
        for path in (ROOT / room).rglob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("class ") and "Settings)" in line
    }
    assert {cls.__name__ for cls in settings_classes()} == said
    assert len(said) > 10


@pytest.mark.parametrize("name", BOOK)
def test_every_setting_says_what_it_means_and_in_which_unit(name: str) -> None:
    assert BOOK[name].description, f"{BOOK[name].book} says nothing about {name}: give its Field a description, then `make documents`"
    assert BOOK[name].unit


def test_a_duration_is_in_seconds_and_a_choice_names_its_values() -> None:
    assert (BOOK["GRACE_SECONDS"].unit, BOOK["GRACE_SECONDS"].default) == ("seconds", "30")
    assert BOOK["RETRY_DELAYS_SECONDS"].default == "2,30,120"
    assert BOOK["IMAGE_DTYPE"].unit == "auto | float32 | float16 | bfloat16"
    assert BOOK["AMQP_URL"].required


def test_aliases_and_per_step_settings_are_in_catalog() -> None:
    assert BOOK["VLM_MODEL"].names == ("VLM_MODEL", "AIP_STORAGE_URI", "LLAVA_MODEL_NAME")
    assert {"JUDGE_MODEL", "CONSULT_MODEL", "VALIDATE_ENGINE", "RABBITMQ_PASSWORD", "ENGINE_STEP_SECONDS"} <= set(BOOK)


def test_the_example_changes_nothing_until_it_is_edited_and_names_every_setting() -> None:
    assert not dotenv_values(stream=StringIO(env_example()))
    opened = "\n".join(line.removeprefix("# ") for line in env_example().splitlines() if line.removeprefix("# ").split("=")[0] in BOOK)
    assert set(dotenv_values(stream=StringIO(opened))) == set(BOOK)


def test_every_default_in_the_example_is_taken_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BOOK.keys() & os.environ.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("AMQP_URL", "amqp://somewhere")
    monkeypatch.setenv("STORE_URL", "file:///somewhere")
    before = {cls: cls().model_dump(exclude={"worker"}) for cls in settings_classes()}
    for setting in BOOK.values():
        if setting.default is not None and not setting.required:
            monkeypatch.setenv(setting.name, setting.default.encode().decode("unicode_escape"))
    assert {cls: cls().model_dump(exclude={"worker"}) for cls in settings_classes()} == before


def test_settings_command_filters_by_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--json", "gateway_port"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["names"], told["default"], told["unit"]) == (["GATEWAY_PORT"], "8080", "port")
    assert main(["settings", "no-such-setting"]) == 1
