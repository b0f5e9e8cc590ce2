"""What `atelier dead-letters` does: asks Postgres, sends through the broker. Reads DATABASE_URL and AMQP_URL, or joins the local parts."""

import asyncio
import getpass
import json
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
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
from ops.commands import dead_letter_output as screen
from ops.commands.time_arguments import parse_age, parse_time
from ops.errors import SetupError
from ops.local.postgres import EmbeddedPostgres
from ops.local.shared_server import SharedServer, shared_servers
from ops.local.stack import local_stack
from ops.settings import LocalSettings


class CommandResult(BaseModel):
    """What a command answers with, for people and for machines."""

    document: dict[str, Any]
    text: str


CommandHandler = Callable[[asyncpg.Pool, Namespace], Awaitable[CommandResult]]


def run_command(name: str, arguments: Namespace) -> int:
    """Run one command. What cannot be done is told without a stack, with status 1."""
    configure_logging("WARNING")
    try:
        told = asyncio.run(run_with_database(HANDLERS[name], arguments, needs_broker=name in BROKER_COMMANDS))
    except (PermanentError, PublishError) as error:
        raise SetupError(str(error)) from error
    if getattr(arguments, "json", False):
        sys.stdout.write(json.dumps(told.document, indent=2, ensure_ascii=False) + "\n")
    elif told.text:
        sys.stdout.write(told.text + "\n")
    return 0


async def run_with_database(handler: CommandHandler, arguments: Namespace, *, needs_broker: bool) -> CommandResult:
    async with service_urls(needs_broker=needs_broker) as (amqp_url, database_url):
        settings = BusSettings.model_validate({"amqp_url": amqp_url, "database_url": database_url})
        async with open_pool(settings) as pool:
            assert pool is not None
            if not await DeadLetterRepository(pool).schema_exists():
                await apply_schemas(pool, [SCHEMA])
            arguments.settings = settings
            return await handler(pool, arguments)


@asynccontextmanager
async def service_urls(*, needs_broker: bool) -> AsyncIterator[tuple[str, str]]:
    """Where the broker and the database are. Whoever only looks starts no broker."""
    settings = LocalSettings()
    if needs_broker:
        async with local_stack(settings) as stack:
            yield stack.amqp_url, stack.database_url
        return
    if settings.given_database_url:
        yield settings.given_amqp_url or "amqp://none", settings.given_database_url
        return
    server = EmbeddedPostgres(settings.local_folder.resolve() / "postgres")
    async with shared_servers(SharedServer(server, server.folder)):
        yield settings.given_amqp_url or "amqp://none", server.url


def parse_selection(arguments: Namespace) -> Selection:
    if arguments.before and arguments.older_than:
        raise SetupError("say --before or --older-than, not both: they mean the same moment in two ways")
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


async def list_letters(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    found = await DeadLetterRepository(pool).find(parse_selection(arguments), arguments.limit, arguments.offset)
    return CommandResult(document=to_document(found), text=screen.format_list(found))


async def group_letters(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    groups = await DeadLetterRepository(pool).groups(parse_selection(arguments), by_tenant=arguments.by_tenant, per=arguments.per)
    return CommandResult(document={"groups": [to_document(group) for group in groups]}, text=screen.format_groups(groups))


async def show_letter(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    letter = await DeadLetterRepository(pool).get(arguments.id)
    return CommandResult(document=to_document(letter), text=screen.format_letter(letter))


async def replay_letters(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    request = ReplayDeadLetters(
        selection=parse_selection(arguments),
        again=arguments.again,
        per_second=arguments.per_second,
        dry_run=not arguments.yes,
        by=requested_by(arguments),
    )
    told = await replay.stage(pool, request)
    sent = await send_replay(pool, arguments, told.replay_id)
    return CommandResult(document=to_document(told) | {"sent": sent}, text=screen.format_replayed(told, sent))


async def edit_letter(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    body = await read_new_body(pool, arguments)
    told = await replay.edit(pool, EditDeadLetter(id=arguments.id, body=body, dry_run=not arguments.yes, by=requested_by(arguments)))
    sent = await send_replay(pool, arguments, told.replay_id)
    return CommandResult(document=to_document(told) | {"sent": sent, "body": body}, text=screen.format_edited(told, body, sent))


async def send_replay(pool: asyncpg.Pool, arguments: Namespace, replay_id: int | None) -> int | None:
    """Send what was staged, beside whoever else sends. Killed here, the actor `dead-letters` goes on with it."""
    if replay_id is None or arguments.no_wait:
        return None
    async with open_publisher(arguments.settings) as outbox:
        return await ReplayRelay(pool, outbox).complete_replay(replay_id)


async def read_new_body(pool: asyncpg.Pool, arguments: Namespace) -> dict[str, Any]:
    """The body as edited: a whole file, or the old one with some fields set."""
    if bool(arguments.body) == bool(arguments.set):
        raise SetupError("say either --body FILE or --set PATH=JSON")
    letter = await DeadLetterRepository(pool).get(arguments.id)
    if arguments.set and (letter.body is None or letter.body_cut):
        raise SetupError(
            "this body cannot be changed field by field: it is no text, or too long to show. Give a whole one with --body FILE"
        )
    text = read_input(arguments.body) if arguments.body else letter.body or ""
    try:
        body = json.loads(text)
        if not isinstance(body, dict):
            raise ValueError("it is no JSON object")
        for change in arguments.set:
            set_field(body, *change.split("=", 1))
    except (ValueError, TypeError) as error:
        raise SetupError(f"the new body cannot be read: {error}") from error
    return body


def set_field(body: dict[str, Any], path: str, value: str = "") -> None:
    """Set one field; `a.b.0.c` goes into objects and lists. A value that is no JSON is taken as text."""
    *way, last = path.split(".")
    place: Any = body
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    try:
        meant = json.loads(value)
    except ValueError:
        meant = value
    place[int(last) if isinstance(place, list) else last] = meant


async def change_state(pool: asyncpg.Pool, arguments: Namespace, new_state: str) -> CommandResult:
    letters = await DeadLetterRepository(pool).change_state(
        parse_selection(arguments), new_state, by=requested_by(arguments), dry_run=not arguments.yes
    )
    moved = Moved(dry_run=not arguments.yes, to=new_state, letters=letters)
    return CommandResult(document=to_document(moved), text=screen.format_moved(moved))


async def archive(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    return await change_state(pool, arguments, "archived")


async def restore(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    return await change_state(pool, arguments, "unresolved")


async def resolve(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    return await change_state(pool, arguments, "resolved")


async def purge(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    if not arguments.older_than:
        raise SetupError("say how old: --older-than 30d counts from the last thing that happened to a letter")
    unchanged_since, arguments.older_than = datetime.now(UTC) - parse_age(arguments.older_than), None
    letters = await DeadLetterRepository(pool).purge(parse_selection(arguments), unchanged_since=unchanged_since, dry_run=not arguments.yes)
    moved = Moved(dry_run=not arguments.yes, to="purged", letters=letters)
    return CommandResult(document=to_document(moved), text=screen.format_moved(moved))


async def export_letters(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    count = 0
    with open_output(arguments.to) as out:
        async for line in jsonl.export_lines(pool, parse_selection(arguments)):
            out.write(line + "\n")
            count += 1
    return CommandResult(
        document={"letters": count}, text=f"{screen.format_count(count)} written to {arguments.to}" if arguments.to else ""
    )


async def import_letters(pool: asyncpg.Pool, arguments: Namespace) -> CommandResult:
    text = read_input(arguments.file)
    new = await jsonl.import_lines(pool, text.splitlines(), dry_run=not arguments.yes)
    moved = Moved(dry_run=not arguments.yes, to="imported", letters=new)
    return CommandResult(document=to_document(moved), text=screen.format_moved(moved))


def open_output(file: str | None) -> AbstractContextManager[TextIO]:
    """Where lines are written to."""
    return Path(file).open("w", encoding="utf-8") if file else nullcontext(sys.stdout)


def read_input(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{file} cannot be read: {error}") from error


def requested_by(arguments: Namespace) -> str:
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
    "archive": archive,
    "restore": restore,
    "resolve": resolve,
    "purge": purge,
    "export": export_letters,
    "import": import_letters,
}
