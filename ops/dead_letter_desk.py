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

from bus.database import make_tables, open_database
from bus.dead_letters import lines, replay
from bus.dead_letters.cabinet import SCHEMA, Cabinet
from bus.dead_letters.sender import Sender
from bus.errors import PermanentError, PublishError
from bus.logs import open_logs
from bus.outbox import open_outbox
from bus.settings import BusSettings
from contracts.dead_letter import EditDeadLetter, Moved, ReplayDeadLetters, Selection
from ops import dead_letter_screen as screen
from ops.ages import moment, since
from ops.errors import SetupError
from ops.local.postgres import EmbeddedPostgres
from ops.local.sharing import Shared, joined
from ops.local.stack import local_stack
from ops.settings import LocalSettings


class Told(BaseModel):
    """What a command answers with, for people and for machines."""

    document: dict[str, Any]
    words: str


Desk = Callable[[asyncpg.Pool, Namespace], Awaitable[Told]]


def serve(name: str, arguments: Namespace) -> int:
    """Run one command. What cannot be done is told without a stack, with status 1."""
    open_logs("WARNING")
    try:
        told = asyncio.run(at_desk(DESKS[name], arguments, sends=name in SENDING))
    except (PermanentError, PublishError) as error:
        raise SetupError(str(error)) from error
    if getattr(arguments, "json", False):
        sys.stdout.write(json.dumps(told.document, indent=2, ensure_ascii=False) + "\n")
    elif told.words:
        sys.stdout.write(told.words + "\n")
    return 0


async def at_desk(desk: Desk, arguments: Namespace, *, sends: bool) -> Told:
    async with addresses(sends=sends) as (amqp_url, database_url):
        settings = BusSettings.model_validate({"amqp_url": amqp_url, "database_url": database_url})
        async with open_database(settings) as pool:
            assert pool is not None
            if not await Cabinet(pool).exists():
                await make_tables(pool, [SCHEMA])
            arguments.settings = settings
            return await desk(pool, arguments)


@asynccontextmanager
async def addresses(*, sends: bool) -> AsyncIterator[tuple[str, str]]:
    """Where the broker and the database are. Whoever only looks starts no broker."""
    settings = LocalSettings()
    if sends:
        async with local_stack(settings) as stack:
            yield stack.amqp_url, stack.database_url
        return
    if settings.given_database_url:
        yield settings.given_amqp_url or "amqp://none", settings.given_database_url
        return
    server = EmbeddedPostgres(settings.local_folder.resolve() / "postgres")
    async with joined(Shared(server, server.folder)):
        yield settings.given_amqp_url or "amqp://none", server.url


def selection_of(arguments: Namespace) -> Selection:
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
            since=moment(arguments.since) if arguments.since else None,
            before=moment(before) if before else None,
            everything=arguments.everything,
        )
    except ValidationError as error:
        raise SetupError(str(error)) from error


async def list_letters(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    found = await Cabinet(pool).page(selection_of(arguments), arguments.limit, arguments.offset)
    return Told(document=document(found), words=screen.listed(found))


async def group_letters(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    groups = await Cabinet(pool).groups(selection_of(arguments), by_tenant=arguments.by_tenant, per=arguments.per)
    return Told(document={"groups": [document(group) for group in groups]}, words=screen.grouped(groups))


async def show_letter(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    letter = await Cabinet(pool).get(arguments.id)
    return Told(document=document(letter), words=screen.shown(letter))


async def replay_letters(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    request = ReplayDeadLetters(
        selection=selection_of(arguments),
        again=arguments.again,
        per_second=arguments.per_second,
        dry_run=not arguments.yes,
        by=asker(arguments),
    )
    told = await replay.stage(pool, request)
    sent = await send(pool, arguments, told.replay_id)
    return Told(document=document(told) | {"sent": sent}, words=screen.replayed(told, sent))


async def edit_letter(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    body = await new_body(pool, arguments)
    told = await replay.edit(pool, EditDeadLetter(id=arguments.id, body=body, dry_run=not arguments.yes, by=asker(arguments)))
    sent = await send(pool, arguments, told.replay_id)
    return Told(document=document(told) | {"sent": sent, "body": body}, words=screen.edited(told, body, sent))


async def send(pool: asyncpg.Pool, arguments: Namespace, replay_id: int | None) -> int | None:
    """Send what was staged, beside whoever else sends. Killed here, the actor `dead-letters` goes on with it."""
    if replay_id is None or arguments.no_wait:
        return None
    async with open_outbox(arguments.settings) as outbox:
        return await Sender(pool, outbox).finish(replay_id)


async def new_body(pool: asyncpg.Pool, arguments: Namespace) -> dict[str, Any]:
    """The body as edited: a whole file, or the old one with some fields set."""
    if bool(arguments.body) == bool(arguments.set):
        raise SetupError("say either --body FILE or --set PATH=JSON")
    letter = await Cabinet(pool).get(arguments.id)
    if arguments.set and (letter.body is None or letter.body_cut):
        raise SetupError(
            "this body cannot be changed field by field: it is no text, or too long to show. Give a whole one with --body FILE"
        )
    text = read(arguments.body) if arguments.body else letter.body or ""
    try:
        body = json.loads(text)
        if not isinstance(body, dict):
            raise ValueError("it is no JSON object")
        for change in arguments.set:
            apply(body, *change.split("=", 1))
    except (ValueError, TypeError) as error:
        raise SetupError(f"the new body cannot be read: {error}") from error
    return body


def apply(body: dict[str, Any], path: str, value: str = "") -> None:
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


async def move_letters(pool: asyncpg.Pool, arguments: Namespace, to: str) -> Told:
    letters = await Cabinet(pool).move(selection_of(arguments), to, by=asker(arguments), dry_run=not arguments.yes)
    moved = Moved(dry_run=not arguments.yes, to=to, letters=letters)
    return Told(document=document(moved), words=screen.moved(moved))


async def archive(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    return await move_letters(pool, arguments, "archived")


async def restore(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    return await move_letters(pool, arguments, "unresolved")


async def resolve(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    return await move_letters(pool, arguments, "resolved")


async def purge(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    if not arguments.older_than:
        raise SetupError("say how old: --older-than 30d counts from the last thing that happened to a letter")
    unchanged_since, arguments.older_than = datetime.now(UTC) - since(arguments.older_than), None
    letters = await Cabinet(pool).purge(selection_of(arguments), unchanged_since=unchanged_since, dry_run=not arguments.yes)
    moved = Moved(dry_run=not arguments.yes, to="purged", letters=letters)
    return Told(document=document(moved), words=screen.moved(moved))


async def export(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    count = 0
    with page(arguments.to) as out:
        async for line in lines.export(pool, selection_of(arguments)):
            out.write(line + "\n")
            count += 1
    return Told(document={"letters": count}, words=f"{screen.letters(count)} written to {arguments.to}" if arguments.to else "")


async def take_in(pool: asyncpg.Pool, arguments: Namespace) -> Told:
    text = read(arguments.file)
    new = await lines.take_in(pool, text.splitlines(), dry_run=not arguments.yes)
    moved = Moved(dry_run=not arguments.yes, to="imported", letters=new)
    return Told(document=document(moved), words=screen.moved(moved))


def page(file: str | None) -> AbstractContextManager[TextIO]:
    """Where lines are written to."""
    return Path(file).open("w", encoding="utf-8") if file else nullcontext(sys.stdout)


def read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{file} cannot be read: {error}") from error


def asker(arguments: Namespace) -> str:
    try:
        return str(arguments.by or getpass.getuser())
    except (OSError, KeyError):
        return ""


def document(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_none=True)


SENDING = frozenset({"replay", "edit"})

DESKS: dict[str, Desk] = {
    "list": list_letters,
    "groups": group_letters,
    "show": show_letter,
    "replay": replay_letters,
    "edit": edit_letter,
    "archive": archive,
    "restore": restore,
    "resolve": resolve,
    "purge": purge,
    "export": export,
    "import": take_in,
}
