"""The arguments of `atelier dead-letters`. Its commands are in `ops/commands/dead_letter_handlers.py`, imported when one runs."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from importlib import import_module
from typing import Any

EXAMPLES = """\
examples:
  atelier dead-letters groups                                letters by cause, the largest group first
  atelier dead-letters list --step image --since 2h
  atelier dead-letters show 5d1c0c9c0f3b8a21                 body, headers, stack and history of one letter
  atelier dead-letters replay --group 0a1b2c3d4e5f           shows what it would send
  atelier dead-letters replay --group 0a1b2c3d4e5f --yes --per-second 5
  atelier dead-letters edit 5d1c0c9c0f3b8a21 --set steps=20 --yes
  atelier dead-letters archive --code lora-missing --older-than 30d --yes
  atelier dead-letters export --state unresolved --to letters.jsonl

Nothing is sent, changed or deleted without --yes. A time is written as 2026-01-31T12:00 (UTC) or as an age: 90s, 15m, 2h, 30d.
"""

STATES = ("unresolved", "replay-requested", "resolved", "failed-again", "archived")
"""Those of `contracts.dead_letter.DeadLetterState`, repeated so that `--help` does not import pydantic."""

FILTERS = {
    "group": "a cause, by the id that `groups` prints",
    "step": "such as image",
    "code": "such as attempts-exhausted",
    "exception": "such as KeyError",
    "tenant": None,
    "job": "the id of a job",
    "message-id": None,
}
"""Option to help text."""


def add_commands(subparsers: Any) -> None:
    """Add `dead-letters` to the subcommands of a parser."""
    description = (
        "Messages that failed for good: inspect, group, replay, edit, archive. They are kept in Postgres; reading disturbs no queue."
    )
    parser = subparsers.add_parser(
        "dead-letters",
        help="messages that failed for good: inspect, replay, archive",
        description=description,
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_read_commands(commands)
    add_replay_commands(commands)
    add_state_commands(commands)


def add_read_commands(subparsers: Any) -> None:
    listing = add_command(subparsers, "list", "letters, the latest failure first", takes_selection=True)
    listing.add_argument("--limit", type=int, default=50)
    listing.add_argument("--offset", type=int, default=0)

    groups = add_command(subparsers, "groups", "letters by cause: step, code, exception and stack fingerprint", takes_selection=True)
    groups.add_argument("--by-tenant", action="store_true", help="split each cause by tenant")
    groups.add_argument("--per", choices=["hour", "day"], help="split each cause by time")

    show = add_command(subparsers, "show", "one letter: body, headers, cause, history")
    show.add_argument("id", metavar="ID")


def add_replay_commands(subparsers: Any) -> None:
    replay = add_command(
        subparsers, "replay", "send letters again, each only to the queue in which it failed", takes_selection=True, changes_data=True
    )
    replay.add_argument("--again", action="store_true", help="under a new message id: repeat the work even if it had been done")
    replay.add_argument("--per-second", type=float, metavar="N", help="at most N letters a second")
    replay.add_argument("--no-wait", action="store_true", help="leave publishing to the running dead-letters actor")

    edit = add_command(subparsers, "edit", "send another body under a new message id, which resolves the letter", changes_data=True)
    edit.add_argument("id", metavar="ID")
    edit.add_argument("--body", metavar="FILE", help="the whole new body, JSON; - reads standard input")
    edit.add_argument("--set", action="append", default=[], metavar="PATH=JSON", help="change one field, such as lora.required=false")
    edit.add_argument("--no-wait", action="store_true", help="leave publishing to the running dead-letters actor")


def add_state_commands(subparsers: Any) -> None:
    add_command(subparsers, "archive", "archive letters; `restore` brings them back", takes_selection=True, changes_data=True)
    add_command(subparsers, "restore", "return archived letters to unresolved", takes_selection=True, changes_data=True)
    add_command(
        subparsers, "resolve", "mark letters as resolved whose completion no event reports", takes_selection=True, changes_data=True
    )
    add_command(
        subparsers,
        "purge",
        "delete archived and resolved letters; --older-than counts from the last change",
        takes_selection=True,
        changes_data=True,
    )

    export = add_command(subparsers, "export", "whole letters as JSON lines", takes_selection=True, json=False)
    export.add_argument("--to", metavar="FILE", help="default: standard output")

    importing = add_command(
        subparsers, "import", "letters from JSON lines, all or none; existing letters are not changed", changes_data=True
    )
    importing.add_argument("file", metavar="FILE", help="- reads standard input")


def add_command(
    subparsers: Any, name: str, help_text: str, *, takes_selection: bool = False, changes_data: bool = False, json: bool = True
) -> ArgumentParser:
    parser: ArgumentParser = subparsers.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    if takes_selection:
        add_selection_arguments(parser)
    if changes_data:
        parser.add_argument("--yes", action="store_true", help="do it; otherwise it is a dry run")
        parser.add_argument("--by", default="", metavar="NAME", help="your name for the history; default: the user of this terminal")
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.set_defaults(call=lazy_handler(name))
    return parser


def add_selection_arguments(parser: ArgumentParser) -> None:
    """The filters of a selection; a letter must match all of them."""
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--all", dest="everything", action="store_true", help="all letters; required when there is no filter")
    for name, help_text in FILTERS.items():
        parser.add_argument(f"--{name}", metavar=name.upper().replace("-", "_"), help=help_text)
    parser.add_argument("--state", choices=STATES)
    parser.add_argument("--since", metavar="WHEN", help="last failed at that time or later")
    parser.add_argument("--before", metavar="WHEN", help="last failed before that time")
    parser.add_argument("--older-than", metavar="AGE", help="such as 30d")


def lazy_handler(name: str) -> Callable[[Namespace], int]:
    def call(arguments: Namespace) -> int:
        return int(import_module("ops.commands.dead_letter_handlers").run_command(name, arguments))

    return call
