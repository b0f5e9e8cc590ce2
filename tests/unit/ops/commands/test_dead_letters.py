"""The command line of `atelier dead-letters`. No database."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from contracts.dead_letter import DeadLetterState
from ops.commands.dead_letter_handlers import HANDLERS, parse_selection, read_new_body, set_field
from ops.commands.dead_letters import STATES, add_commands
from ops.errors import SetupError


def parse(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    add_commands(parser.add_subparsers())
    return parser.parse_args(["dead-letters", *arguments])


def test_states_are_those_of_the_contract() -> None:
    assert get_args(DeadLetterState) == STATES


@pytest.mark.parametrize("name", HANDLERS)
def test_every_handler_has_a_command(name: str) -> None:
    arguments = {"show": ["id"], "edit": ["id"], "import": ["file"]}.get(name, [])
    assert callable(parse(name, *arguments).call)


def test_filters_are_parsed_into_selection() -> None:
    selection = parse_selection(parse("list", "l-1", "--step", "image", "--state", "archived", "--before", "2026-01-31T12:00"))
    assert selection.model_dump(mode="json", exclude_none=True) == {
        "ids": ["l-1"],
        "step": "image",
        "state": "archived",
        "before": "2026-01-31T12:00:00Z",
        "everything": False,
    }


@pytest.mark.parametrize("arguments", [["--before", "2h", "--older-than", "2h"], ["--step", "a\0"], ["--since", "yesterday"]])
def test_invalid_filter_is_rejected(arguments: list[str]) -> None:
    with pytest.raises(SetupError):
        parse_selection(parse("list", *arguments))


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("a", "2", {"a": 2, "list": [{"b": 1}]}),
        ("a", "plain text", {"a": "plain text", "list": [{"b": 1}]}),
        ("new.field", "null", {"a": 1, "list": [{"b": 1}], "new": {"field": None}}),
        ("list.0.b", '["x"]', {"a": 1, "list": [{"b": ["x"]}]}),
        ("list.0", "true", {"a": 1, "list": [True]}),
    ],
)
def test_field_is_set_by_path(path: str, text: str, expected: dict[str, Any]) -> None:
    body: dict[str, Any] = {"a": 1, "list": [{"b": 1}]}
    set_field(body, path, text)
    assert body == expected


@pytest.mark.parametrize("change", ["list.7.b=1", "list.7=1", "a.b.c=1", "list.x=1", "a=" + "[" * 200_000])
async def test_path_that_the_body_lacks_is_refused_with_its_cause(change: str) -> None:
    class Repository:
        async def get(self, _: str) -> Any:
            return SimpleNamespace(body='{"a": 1, "list": [{"b": 1}]}', body_cut=False)

    with pytest.raises(SetupError, match="the new body cannot be read"):
        await read_new_body(Repository(), parse("edit", "id", "--set", change))  # type: ignore[arg-type]


async def test_byte_order_mark_before_a_new_or_stored_body_is_left_out(tmp_path: Path) -> None:
    """Editors and .NET writers put it there."""

    class Repository:
        async def get(self, letter_id: str) -> Any:
            return SimpleNamespace(body='\ufeff{"a": 1}', body_cut=False)

    file = tmp_path / "body.json"
    file.write_text('\ufeff{"a": 2}', encoding="utf-8")
    assert await read_new_body(Repository(), parse("edit", "id", "--body", str(file))) == {"a": 2}  # type: ignore[arg-type]
    assert await read_new_body(Repository(), parse("edit", "id", "--set", "b=3")) == {"a": 1, "b": 3}  # type: ignore[arg-type]
