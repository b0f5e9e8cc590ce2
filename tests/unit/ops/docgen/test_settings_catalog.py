"""The catalog has every setting with a unit and a description, and the defaults of the settings classes."""

import json
import os
import re
from io import StringIO

import pytest
from dotenv import dotenv_values

from bus.settings import BusSettings
from ops.cli import main
from ops.docgen.configuration import CHANGED_OFTEN, COMPOSE_VARIABLES, LANGUAGE_MODEL, REQUIRED, configuration_page, env_example
from ops.docgen.generate import ROOT
from ops.docgen.settings_catalog import all_settings, settings_classes

CATALOG = {setting.name: setting for setting in all_settings()}


def test_every_settings_class_is_in_catalog() -> None:
    defined = {
        line.split("(")[0].removeprefix("class ")
        for package in ("bus", "actors", "gateway", "ops")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("class ") and "Settings)" in line
    }
    assert {cls.__name__ for cls in settings_classes()} == defined
    assert len(defined) > 10


@pytest.mark.parametrize("name", CATALOG)
def test_setting_has_description_and_unit(name: str) -> None:
    assert CATALOG[name].description, (
        f"{name} of {CATALOG[name].settings_class} has no description: add one to its Field, then `make documents`"
    )
    assert CATALOG[name].unit


def test_units_come_from_names_and_types() -> None:
    assert (CATALOG["ATELIER_GRACE_SECONDS"].unit, CATALOG["ATELIER_GRACE_SECONDS"].default) == ("seconds", "30")
    assert CATALOG["ATELIER_RETRY_DELAYS_SECONDS"].default == "2,30,120"
    assert CATALOG["IMAGE_DTYPE"].unit == "auto | float32 | float16 | bfloat16"
    assert CATALOG["AMQP_URL"].required


def test_aliases_and_per_step_settings_are_in_catalog() -> None:
    assert CATALOG["ATELIER_GRACE_SECONDS"].names == ("ATELIER_GRACE_SECONDS", "GRACE_SECONDS")
    assert CATALOG["VLM_MODEL"].names == ("VLM_MODEL", "AIP_STORAGE_URI", "LLAVA_MODEL_NAME")
    assert {"JUDGE_MODEL", "CONSULT_MODEL", "VALIDATE_ENGINE", "RABBITMQ_PASSWORD", "ENGINE_STEP_SECONDS"} <= set(CATALOG)


def test_unprefixed_names_of_process_wide_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", "amqp://somewhere")
    monkeypatch.setenv("GRACE_SECONDS", "3")
    monkeypatch.setenv("RETRY_DELAYS_SECONDS", "1,2")
    assert (BusSettings().grace_seconds, BusSettings().retry_delays_seconds) == (3, (1, 2))
    monkeypatch.setenv("ATELIER_GRACE_SECONDS", "4")
    assert BusSettings().grace_seconds == 4
    assert BusSettings(grace_seconds=5).grace_seconds == 5


def test_env_example_shows_required_and_ten_settings_and_changes_nothing_until_edited() -> None:
    assert not dotenv_values(stream=StringIO(env_example()))
    shown = dotenv_values(stream=StringIO("\n".join(re.findall(r"^# ([A-Z0-9_]+=.*)$", env_example(), re.MULTILINE))))
    required = [variable.name for variable in COMPOSE_VARIABLES if variable.default is None]
    model = [variable.name for variable in COMPOSE_VARIABLES if variable.name in LANGUAGE_MODEL]
    assert list(shown) == [*required, *model, *REQUIRED, *CHANGED_OFTEN]
    assert len(CHANGED_OFTEN) == 10
    assert set(CHANGED_OFTEN) <= set(CATALOG)


def test_reference_names_every_setting() -> None:
    page = configuration_page()
    assert all(f"| `{name}`" in page for name in CATALOG)


def test_every_default_is_accepted_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CATALOG.keys() & os.environ.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("AMQP_URL", "amqp://somewhere")
    monkeypatch.setenv("STORE_URL", "file:///somewhere")
    before = {cls: cls().model_dump(exclude={"worker"}) for cls in settings_classes()}
    for setting in CATALOG.values():
        if setting.default is not None and not setting.required:
            monkeypatch.setenv(setting.name, setting.default.encode("ascii", "backslashreplace").decode("unicode_escape"))
    assert {cls: cls().model_dump(exclude={"worker"}) for cls in settings_classes()} == before


def test_settings_command_filters_by_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--json", "gateway_port"]) == 0
    (setting,) = json.loads(capsys.readouterr().out)
    assert (setting["names"], setting["default"], setting["unit"]) == (["GATEWAY_PORT", "LLM_PORT"], "8080", "port")
    assert (setting["package"], setting["room"]) == ("gateway", "gateway")
    assert main(["settings", "no-such-setting"]) == 1
