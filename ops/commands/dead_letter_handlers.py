"""The commands of `atelier dead-letters`: they query Postgres and publish replays through the broker.

DATABASE_URL and AMQP_URL name the servers; without them the local ones of `atelier up` are used.
"""

import asyncio
import getpass
import json
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import asyncpg
from pydantic import BaseModel, ValidationError

from bus.amqp.publisher import open_publisher
from bus.dead_letters import jsonl, replay
from bus.dead_letters.relay import ReplayRelay
from bus.dead_letters.repository import SCHEMA, DeadLetterRepository
from bus.errors import PermanentError, PublishError
from bus.observability.logs import configure_logging
from bus.persistence.pool import apply_schemas, open_pool
from bus.settings import BusSettings
from contracts.dead_letter import EditDeadLetter, Moved, ReplayDeadLetters, Selection
from ops.commands import dead_letter_output as output
from ops.commands.time_arguments import parse_age, parse_time
from ops.errors import SetupError
from ops.local.postgres import EmbeddedPostgres
from ops.local.secret_file import secret_fields
from ops.local.shared_server import SharedServer, shared_servers
from ops.local.stack import local_stack
from ops.settings import LocalSettings

BYTE_ORDER_MARK = "\ufeff"


class CommandResult(BaseModel):
    """The answer of a command: a JSON document for `--json`, and a text for the terminal."""

    document: dict[str, Any]
    text: str


@dataclass(frozen=True)
class CommandContext:
    """The resources of a command. `settings` names a broker that runs only for BROKER_COMMANDS."""

    pool: asyncpg.Pool
    settings: BusSettings

    @property
    def repository(self) -> DeadLetterRepository:
        return DeadLetterRepository(self.pool)


CommandHandler = Callable[[CommandContext, Namespace], Awaitable[CommandResult]]


def run_command(name: str, arguments: Namespace) -> int:
    """Run one command and print its result; returns the exit status. Raises SetupError for what cannot be done."""
    configure_logging("WARNING")
    try:
        result = asyncio.run(run_with_services(HANDLERS[name], arguments, needs_broker=name in BROKER_COMMANDS))
    except (PermanentError, PublishError) as error:
        raise SetupError(str(error)) from error
    if getattr(arguments, "json", False):
        sys.stdout.write(json.dumps(result.document, indent=2, ensure_ascii=False) + "\n")
    elif result.text:
        sys.stdout.write(result.text + "\n")
    return 0


async def run_with_services(handler: CommandHandler, arguments: Namespace, *, needs_broker: bool) -> CommandResult:
    """Open the database, with its tables, and run a command on it."""
    async with service_urls(needs_broker=needs_broker) as (amqp_url, database_url):
        secrets = secret_fields(LocalSettings()) if needs_broker else {}
        settings = BusSettings.model_validate({"amqp_url": amqp_url, "database_url": database_url} | secrets)
        async with open_pool(settings) as pool:
            assert pool is not None
            if not await DeadLetterRepository(pool).schema_exists():
                await apply_schemas(pool, [SCHEMA])
            return await handler(CommandContext(pool, settings), arguments)


@asynccontextmanager
async def service_urls(*, needs_broker: bool) -> AsyncIterator[tuple[str, str]]:
    """The URLs of the broker and the database. A command that does not publish starts no local broker."""
    settings = LocalSettings()
    if needs_broker:
        async with local_stack(settings) as stack:
            yield stack.amqp_url_of("operator"), stack.database_url
        return
    if settings.given_database_url:
        yield settings.given_amqp_url or "amqp://none", settings.given_database_url
        return
    server = EmbeddedPostgres(settings.local_folder.resolve() / "postgres")
    async with shared_servers(SharedServer(server, server.folder)):
        yield settings.given_amqp_url or "amqp://none", server.url


def parse_selection(arguments: Namespace) -> Selection:
    """The filters of a command line. Raises SetupError."""
    if arguments.before and arguments.older_than:
        raise SetupError("give --before or --older-than, not both: each sets the same limit")
    before = arguments.before or arguments.older_than
    try:
        return Selection(
            ids=arguments.ids or None,
            group=arguments.group,
            step=arguments.step,
            code=arguments.code,
            exception_type=arguments.exception,
            tenant=arguments.tenant,
            state=arguments.state,
            job_id=arguments.job,
            message_id=arguments.message_id,
            since=parse_time(arguments.since) if arguments.since else None,
            before=parse_time(before) if before else None,
            everything=arguments.everything,
        )
    except ValidationError as error:
        raise SetupError(str(error)) from error


async def list_letters(context: CommandContext, arguments: Namespace) -> CommandResult:
    page = await context.repository.find(parse_selection(arguments), arguments.limit, arguments.offset)
    return CommandResult(document=to_document(page), text=output.format_list(page))


async def group_letters(context: CommandContext, arguments: Namespace) -> CommandResult:
    groups = await context.repository.groups(parse_selection(arguments), by_tenant=arguments.by_tenant, per=arguments.per)
    return CommandResult(document={"groups": [to_document(group) for group in groups]}, text=output.format_groups(groups))


async def show_letter(context: CommandContext, arguments: Namespace) -> CommandResult:
    letter = await context.repository.get(arguments.id)
    return CommandResult(document=to_document(letter), text=output.format_letter(letter))


async def replay_letters(context: CommandContext, arguments: Namespace) -> CommandResult:
    request = ReplayDeadLetters(
        selection=parse_selection(arguments),
        again=arguments.again,
        per_second=arguments.per_second,
        dry_run=not arguments.yes,
        by=requested_by(arguments),
    )
    preview = await replay.stage(context.pool, request.model_copy(update={"dry_run": True}))
    if request.dry_run:
        return CommandResult(document=to_document(preview) | {"sent": None}, text=output.format_replayed(preview, None))
    changes = output.format_differences(preview.differences, preview.compared, preview.letters)
    if changes and not arguments.json:
        sys.stdout.write(changes.lstrip("\n") + "\n")
        sys.stdout.flush()
    staged = await replay.stage(context.pool, request)
    sent = await send_replay(context, arguments, staged.replay_id)
    return CommandResult(
        document=to_document(staged) | {"sent": sent, "differences": to_document(preview).get("differences", [])},
        text=output.format_replayed(staged, sent),
    )


async def edit_letter(context: CommandContext, arguments: Namespace) -> CommandResult:
    body = await read_new_body(context.repository, arguments)
    request = EditDeadLetter(id=arguments.id, body=body, dry_run=not arguments.yes, by=requested_by(arguments))
    edited = await replay.edit(context.pool, request)
    sent = await send_replay(context, arguments, edited.replay_id)
    return CommandResult(document=to_document(edited) | {"sent": sent, "body": body}, text=output.format_edited(edited, body, sent))


async def send_replay(context: CommandContext, arguments: Namespace, replay_id: int | None) -> int | None:
    """Publish a staged replay, possibly beside the actor `dead-letters`, which completes it when this process is killed.

    Returns how many letters were sent; None when there is no replay or `--no-wait` leaves it to the actor.
    """
    if replay_id is None or arguments.no_wait:
        return None
    async with open_publisher(context.settings) as publisher:
        return await ReplayRelay(context.pool, publisher).complete_replay(replay_id)


async def read_new_body(repository: DeadLetterRepository, arguments: Namespace) -> dict[str, Any]:
    """The edited body: a whole file, or the stored body with some fields set. Raises SetupError."""
    if bool(arguments.body) == bool(arguments.set):
        raise SetupError("give either --body FILE or --set PATH=JSON")
    letter = await repository.get(arguments.id)
    if arguments.set and (letter.body is None or letter.body_cut):
        raise SetupError("this body cannot be changed field by field: it is not text, or too long. Give a whole one with --body FILE")
    text = read_input(arguments.body) if arguments.body else (letter.body or "").removeprefix(BYTE_ORDER_MARK)
    try:
        body = json.loads(text)
        if not isinstance(body, dict):
            raise ValueError("it is not a JSON object")
        for change in arguments.set:
            set_field(body, *change.split("=", 1))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise SetupError(f"the new body cannot be read: {error}") from error
    return body


def set_field(body: dict[str, Any], path: str, text: str = "") -> None:
    """Set one field; the path `a.b.0.c` goes through objects and lists. `text` is JSON, or else a string.

    Raises ValueError, TypeError, LookupError or AttributeError for a path that the body does not have.
    """
    *parents, last = path.split(".")
    container: Any = body
    for key in parents:
        container = container[int(key)] if isinstance(container, list) else container.setdefault(key, {})
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    container[int(last) if isinstance(container, list) else last] = value


async def change_state(context: CommandContext, arguments: Namespace, new_state: str) -> CommandResult:
    selection = parse_selection(arguments)
    count = await context.repository.change_state(selection, new_state, by=requested_by(arguments), dry_run=not arguments.yes)
    return moved_result(arguments, new_state, count)


async def purge(context: CommandContext, arguments: Namespace) -> CommandResult:
    """Here `--older-than` is the time since the last change, not a filter on the last failure."""
    if not arguments.older_than:
        raise SetupError("give an age: --older-than 30d, counted from the last change of a letter")
    unchanged_since = datetime.now(UTC) - parse_age(arguments.older_than)
    selection = parse_selection(Namespace(**vars(arguments) | {"older_than": None}))
    return moved_result(
        arguments, "purged", await context.repository.purge(selection, unchanged_since=unchanged_since, dry_run=not arguments.yes)
    )


def moved_result(arguments: Namespace, to: str, count: int) -> CommandResult:
    moved = Moved(dry_run=not arguments.yes, to=to, letters=count)
    return CommandResult(document=to_document(moved), text=output.format_moved(moved))


async def export_letters(context: CommandContext, arguments: Namespace) -> CommandResult:
    count = 0
    with open_output(arguments.to) as out:
        async for line in jsonl.export_lines(context.pool, parse_selection(arguments)):
            out.write(line + "\n")
            count += 1
    text = f"{output.format_count(count)} written to {arguments.to}" if arguments.to else ""
    return CommandResult(document={"letters": count}, text=text)


async def import_letters(context: CommandContext, arguments: Namespace) -> CommandResult:
    lines = read_input(arguments.file).split("\n")  # a string may contain other line separators, such as U+2028
    return moved_result(arguments, "imported", await jsonl.import_lines(context.pool, lines, dry_run=not arguments.yes))


def open_output(file: str | None) -> AbstractContextManager[TextIO]:
    """The file, or standard output, which stays open."""
    return Path(file).open("w", encoding="utf-8") if file else nullcontext(sys.stdout)


def read_input(file: str) -> str:
    """The text of a file, or of standard input for `-`, without a byte order mark. Raises SetupError."""
    try:
        return (sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")).removeprefix(BYTE_ORDER_MARK)
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{file} cannot be read: {error}") from error


def requested_by(arguments: Namespace) -> str:
    """The name for the history: `--by`, or the user of this terminal; empty when unknown."""
    try:
        return str(arguments.by or getpass.getuser())
    except (OSError, KeyError):
        return ""


def to_document(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_none=True)


BROKER_COMMANDS = frozenset({"replay", "edit"})

HANDLERS: dict[str, CommandHandler] = {
    "list": list_letters,
    "groups": group_letters,
    "show": show_letter,
    "replay": replay_letters,
    "edit": edit_letter,
    "archive": partial(change_state, new_state="archived"),
    "restore": partial(change_state, new_state="unresolved"),
    "resolve": partial(change_state, new_state="resolved"),
    "purge": purge,
    "export": export_letters,
    "import": import_letters,
}
