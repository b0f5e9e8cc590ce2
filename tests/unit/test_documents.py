"""Documents say only what works: each command is run here, parsed by its own parser, or named as not run; links, settings and files exist.

docs/http.md and docs/dead-letters.md are run command by command in tests/integration/, and the programs in Python by
test_example_programs.
"""

import importlib.util
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bus.settings import BusSettings
from gateway.app import create_app
from gateway.settings import GatewaySettings
from ops.cli import main, parser
from ops.docgen.configuration import COMPOSE_VARIABLES
from ops.docgen.settings_catalog import all_settings

ROOT = Path(__file__).parents[2]
TOP_LEVEL_PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in TOP_LEVEL_PAGES), *sorted((ROOT / "docs").glob("*.md"))]
TESTED_ELSEWHERE = {"http.md": "test_http_document", "dead-letters.md": "test_dead_letter"}
NOT_RUN = frozenset({"docker", "gcloud", "gsutil", "kubectl", "helm", "runpodctl"})
"""Programs that need a container engine, a cluster or an account."""
RUN = (("topology",), ("settings", "health"), ("topology", "--json"))
"""Commands without a side effect: run as they are."""
EXTERNALLY_READ = re.compile(
    r"RABBITMQ_\w+|OTEL_\w+|PYTHON\w*|ARGS|JOB|GATEWAY|[A-Z]+_ID|COMPOSE_(FILE|PROFILES)|CUDA_VISIBLE_DEVICES|AWS_CA_BUNDLE|DATA_FILE_PATH|DEFAULT_TEMPERATURE"
)
"""Variables of no settings class: parts of the broker's URL, those of OpenTelemetry, Compose, CUDA, S3 and examples/hints, a page's own."""


@dataclass(frozen=True)
class Command:
    page: str
    line: str

    @property
    def words(self) -> list[str]:
        """The words of the command, without leading environment variables and a trailing comment."""
        words = shlex.split(self.line, comments=True)
        while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
            words.pop(0)
        return words

    @property
    def variables(self) -> list[str]:
        return re.findall(r"(?:^|\s)([A-Z][A-Z0-9_]*)=", self.line.split(" --", 1)[0])


def fenced_blocks(page: Path, *languages: str) -> list[str]:
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", page.read_text(), re.DOTALL)


def documented_commands() -> Iterator[Command]:
    for page in PAGES:
        for block in fenced_blocks(page, "bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    yield Command(page.name, line)


def find_error(command: Command) -> str | None:
    """Return what is wrong with a command, or None."""
    match command.words:
        case [] | ["export", *_]:
            return None
        case ["make", target, *rest]:
            return find_make_error(target, rest)
        case ["atelier", *words]:
            return find_parser_error(words)
        case ["python" | "python3", "-m", module, *_]:
            return None if importlib.util.find_spec(module) else f"no module {module}"
        case ["pip", "install", *_] | ["pre-commit", "install"] | ["cd" | "cp" | "git", *_] | ["openssl", "rand", "-hex", "32"]:
            return None
        case [program, *_] if (ROOT / program).is_file():
            return None if os.access(ROOT / program, os.X_OK) else f"{program} is not executable"
        case [program, *_] if program in NOT_RUN:
            named = re.findall(r"`(\w+\.md)`", (ROOT / "docs" / "README.md").read_text().partition("not run here")[2])
            return None if command.page in named else f"{program} is not run here, and docs/README.md does not say so of {command.page}"
        case _:
            return "no rule checks this program"


def find_make_error(target: str, rest: list[str]) -> str | None:
    if not re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
        return f"the Makefile has no target {target}"
    options = [shlex.split(word.removeprefix("ARGS=")) for word in rest if word.startswith("ARGS=")]
    return find_parser_error([target, *options[0]]) if options and target in ("demo", "up") else None


def find_parser_error(words: list[str]) -> str | None:
    """Return what the parser of `atelier` refuses, or None. A placeholder such as $ID stands for one word."""
    try:
        parser().parse_args([re.sub(r"^\$\w+$", "00000000-0000-0000-0000-000000000000", word) for word in words])
    except SystemExit as parser_exit:
        return None if parser_exit.code == 0 else f"atelier refuses {' '.join(words)}"
    return None


@pytest.mark.parametrize("command", list(documented_commands()), ids=lambda command: f"{command.page}: {command.line[:60]}")
def test_documented_command_works(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    if command.page in TESTED_ELSEWHERE and command.words[0] != "atelier":
        assert list((ROOT / "tests" / "integration").glob(f"{TESTED_ELSEWHERE[command.page]}*.py"))
        return
    assert find_error(command) is None, f"{command.line}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("words", RUN, ids=" ".join)
def test_safe_documented_commands_succeed(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(words)) == 0
    assert capsys.readouterr().out


def test_invalid_documented_command_is_detected() -> None:
    invalid_commands = [
        "make demoo",
        "atelier run",
        "atelier doctor --jason",
        "make demo ARGS='--cuont 2'",
        "frobnicate now",
        "python -m ops.nowhere",
    ]
    assert [line for line in invalid_commands if find_error(Command("observing.md", line)) is None] == []
    assert "does not say so of observing.md" in str(find_error(Command("observing.md", "docker compose up")))


@pytest.mark.parametrize("page", ["migration.md", "backend.md", "vision.md"])
def test_documented_http_paths_exist(page: str) -> None:
    app = create_app(BusSettings.model_validate({"amqp_url": "amqp://nowhere"}), GatewaySettings())
    served = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    named = set(re.findall(r"`(GET|POST|PUT|DELETE) (/[^\s`]+)`", (ROOT / "docs" / page).read_text()))
    assert named
    assert sorted((method, path) for method, path in named if not is_served(method, path, served)) == []


def is_served(method: str, path: str, served: set[tuple[str, str]]) -> bool:
    return any(verb == method and re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", pattern), path) for verb, pattern in served)


LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_targets(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


FILE_NAME = re.compile(r"`((?:contracts|bus|actors|gateway|ops|tests|training|benchmarks|examples|docs)/[\w/.-]*)`")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    assert [name for name in FILE_NAME.findall(page.read_text()) if not (ROOT / name).exists()] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 80


def test_every_page_is_linked_from_readme() -> None:
    linked = (ROOT / "README.md").read_text() + (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES if page.name not in linked and page.name != "README.md"] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    known = {name for setting in all_settings() for name in setting.names} | {variable.name for variable in COMPOSE_VARIABLES}
    set_in_commands = [name for command in documented_commands() if command.page == page.name for name in command.variables]
    named = {*quoted_settings(page), *set_in_commands}
    assert sorted(name for name in named - known if not EXTERNALLY_READ.fullmatch(name)) == []


def quoted_settings(page: Path) -> list[str]:
    quoted = " ".join(re.findall(r"`([^`\n]+)`", page.read_text()))
    return re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]\b", quoted)


def test_links_files_and_settings_are_found_in_pages() -> None:
    """A pattern that matches nothing would let the three tests above pass."""
    assert sum(len(LINK.findall(page.read_text())) for page in PAGES) > 30
    assert sum(len(FILE_NAME.findall(page.read_text())) for page in PAGES) > 30
    assert sum(len(quoted_settings(page)) for page in PAGES) > 30
