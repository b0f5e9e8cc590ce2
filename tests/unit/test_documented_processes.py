"""Each `atelier` command of the pages that starts a process: with the variables of its block its settings are valid and its actors load."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from pydantic_settings import BaseSettings

from ops.cli import parser
from ops.docgen.process_settings import GATEWAY, settings_of_process
from ops.docgen.settings_catalog import all_settings, settings_classes, settings_of
from ops.registry import expand_groups, load_actors
from tests.unit.test_documents import EXTERNALLY_READ, PAGES, Command, fenced_blocks

SERVICES = ({"AMQP_URL": "amqp://guest@localhost/"}, {"RABBITMQ_HOST"}), ({"STORE_URL": "file:///tmp"}, {"AWS_STORAGE_BUCKET_NAME"})
"""What a page need not repeat: the broker and the store, where the block names neither."""


@dataclass(frozen=True)
class DocumentedProcess:
    """One `atelier` command of a page that starts a process, with the variables that its block sets for it."""

    page: str
    words: tuple[str, ...]
    variables: dict[str, str]

    @property
    def steps(self) -> list[str]:
        arguments = parser().parse_args([re.sub(r"^\$\w+$", "1", word) for word in self.words])
        return expand_groups(getattr(arguments, "steps", []))

    @property
    def settings(self) -> list[type[BaseSettings]]:
        """The classes that the process reads."""
        processes = [GATEWAY] if self.words[0] == "gateway" else self.steps
        names = {setting.settings_class for process in processes for setting in settings_of_process(process)}
        return [cls for cls in settings_classes() if cls.__name__ in names or self.words[0] == "doctor"]


def documented_processes() -> Iterator[DocumentedProcess]:
    """`export` counts for the commands below it in the same block."""
    for page in PAGES:
        for block in fenced_blocks(page, "bash", "sh"):
            exported: dict[str, str] = {}
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                assigned = dict(word.split("=", 1) for word in words if re.match(r"[A-Z][A-Z0-9_]*=", word))
                if words[:1] == ["export"]:
                    exported |= assigned
                match Command(page.name, line).words:
                    case ["atelier", "run" | "gateway" | "up" | "doctor" as command, *rest] if "--help" not in rest:
                        yield DocumentedProcess(page.name, (command, *rest), exported | assigned)


@pytest.mark.parametrize("process", list(documented_processes()), ids=lambda process: f"{process.page}: {' '.join(process.words)[:60]}")
def test_documented_process_loads_with_its_variables(process: DocumentedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads every variable that is set, too."""
    load_process(process, monkeypatch)
    read = {name for cls in process.settings for setting in settings_of(cls) for name in setting.names}
    assert [name for name in process.variables if name not in read and not EXTERNALLY_READ.fullmatch(name)] == []


def load_process(process: DocumentedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises ValidationError for a variable with an invalid value."""
    for name in {name for setting in all_settings() for name in setting.names} & set(os.environ):
        monkeypatch.delenv(name)
    for default, alternatives in SERVICES:
        for name, value in default.items() if not alternatives & set(process.variables) else ():
            monkeypatch.setenv(name, value)
    for name, value in process.variables.items():
        monkeypatch.setenv(name, value)
    for settings_class in process.settings:
        for prefix in getattr(settings_class, "PREFIXES", (settings_class.model_config.get("env_prefix") or "",)):
            settings_class(_env_prefix=prefix)
    if process.words[0] == "run":
        assert load_actors(process.steps)


def test_commands_with_variables_are_found_in_each_section_of_the_migration() -> None:
    page = next(page for page in PAGES if page.name == "migration.md").read_text()
    sections = [section for section in page.split("\n## ")[1:] if "| old system |" in section]
    assert len(sections) == 5
    assert [section.splitlines()[0] for section in sections if "atelier run " not in section] == []
    assert sum(process.page == "migration.md" and bool(process.variables) for process in documented_processes()) >= 5


@pytest.mark.parametrize(("name", "value"), [("MAX_CONCURRENT_GENERATIONS", "many"), ("INTERNAL_API_TOKEN", "short")])
def test_invalid_value_is_found(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    process = DocumentedProcess("migration.md", ("run", "image_generation", "image"), {name: value})
    with pytest.raises(ValueError, match=f"(?i){name}"):
        load_process(process, monkeypatch)
