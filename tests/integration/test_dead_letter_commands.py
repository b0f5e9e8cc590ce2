"""`atelier dead-letters` as a process: every command of `docs/dead-letters.md`, output and errors."""

import asyncio
import json
import re
import shlex
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aio_pika.exceptions import PublishError

from bus.dead_letters.repository import DeadLetterRepository
from bus.settings import BusSettings
from contracts import broker_names
from contracts.dead_letter import Selection
from contracts.wire import Header
from tests.support.broker_client import BrokerClient, wait_until
from tests.support.dead_letter_fixtures import (
    StartWorkerWithIngest,
    queue_size,
    wait_for_dead_letters,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "dead-letters.md"
DEAD = broker_names.dead_letter_queue("upload")
CLAIM = {"uri": "file:///x", "sha256": "0" * 64, "media_type": "image/png", "size": 1}

Atelier = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]


@pytest.fixture
def atelier(bus_settings: BusSettings, tmp_path: Path) -> Atelier:
    """Run a command line; returns its exit status, stdout and stderr."""
    assert bus_settings.database_url is not None
    root = str(Path(__file__).parents[2])
    environment = {
        "AMQP_URL": bus_settings.amqp_url.get_secret_value(),
        "DATABASE_URL": bus_settings.database_url.get_secret_value(),
        "PYTHONPATH": root,
        "USER": "ada",
    }

    async def run(*arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ops.cli",
            *arguments,
            env=environment,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode(), err.decode()

    return run


async def publish_dead_letter(broker_client: BrokerClient, *names: str, code: str = "store-full") -> None:
    for name in names:
        headers = {Header.FAULT_CODE.value: code, Header.FAULT_MESSAGE.value: f"no space for {name}", Header.TENANT.value: "acme"}
        await broker_client.publish(DEAD, {"name": name, "images": [CLAIM]}, exchange="", headers=headers)


async def test_documented_commands_succeed(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, atelier: Atelier
) -> None:
    """In the order of the document, on letters that fit."""
    async with start_worker_with_ingest(queues=(DEAD,)):
        await publish_dead_letter(broker_client, "a", "b", code="documented")
        letters = await wait_for_dead_letters(repository, 2, code="documented")
    variables = {"$ID": letters[0].id, "$GROUP": letters[0].group_id}
    commands = [line for block in re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL) for line in block.splitlines() if line]
    assert len(commands) > 10
    for command in commands:
        arguments = [variables.get(argument, argument) for argument in shlex.split(command)]
        if "edit" in arguments:
            async with start_worker_with_ingest(queues=(DEAD,)):
                await publish_dead_letter(broker_client, "c", code="to-edit")
                arguments[arguments.index("edit") + 1] = (await wait_for_dead_letters(repository, code="to-edit", state="unresolved"))[0].id
        status, out, err = await atelier(*arguments[1:])
        assert (status, err) == (0, ""), command
        assert out.strip(), command


async def test_replay_command_publishes_messages(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository, atelier: Atelier
) -> None:
    """A dry run by default; with --yes every letter is in its queue when the command returns, although no actor runs."""
    before = await _in_queue(broker_client, start_worker_with_ingest)
    async with start_worker_with_ingest(queues=(DEAD,)):
        await publish_dead_letter(broker_client, "a", "b", "c", code="from-here")
        await wait_for_dead_letters(repository, 3, code="from-here")

    status, out, _ = await atelier("dead-letters", "replay", "--code", "from-here", "--json")
    assert (status, json.loads(out)["dry_run"], json.loads(out)["letters"]) == (0, True, 3)
    assert await _in_queue(broker_client, start_worker_with_ingest) == before

    status, out, _ = await atelier("dead-letters", "replay", "--code", "from-here", "--yes", "--json")
    assert (status, json.loads(out)["sent"]) == (0, 3)
    assert await _in_queue(broker_client, start_worker_with_ingest) == before + 3
    [letter, *_] = await wait_for_dead_letters(repository, 3, code="from-here", state="replay-requested")
    assert letter.history[1].said["by"] == "ada"


async def _in_queue(broker_client: BrokerClient, start_worker_with_ingest: StartWorkerWithIngest) -> int:
    async with start_worker_with_ingest():
        return await queue_size(broker_client, broker_names.work_queue("upload"))


async def test_json_output_is_one_document(atelier: Atelier) -> None:
    for arguments in (["list"], ["groups"], ["archive", "--all"], ["purge", "--all", "--older-than", "1d"]):
        status, out, _ = await atelier("dead-letters", *arguments, "--json")
        assert (status, type(json.loads(out))) == (0, dict)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["replay", "--yes"], "nothing is selected"),
        (["archive", "--yes"], "nothing is selected"),
        (["show", "none"], "no dead letter 'none'"),
        (["purge", "--all"], "give an age"),
        (["list", "--since", "yesterday"], "is not a time"),
        (["edit", "none"], "either --body FILE or --set"),
        (["import", "missing.jsonl"], "cannot be read"),
    ],
)
async def test_usage_error_names_its_fix(arguments: list[str], cause: str, atelier: Atelier) -> None:
    """Status 1, a message of one sentence, no traceback."""
    status, out, err = await atelier("dead-letters", *arguments)
    assert (status, out) == (1, "")
    assert cause in err
    assert "Traceback" not in err


async def test_dead_letters_export_and_import_unchanged(
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    atelier: Atelier,
    tmp_path: Path,
    pool: Any,
) -> None:
    """Exported, deleted, imported: the same letter, body and history. A second import changes nothing; an invalid line imports nothing."""
    async with start_worker_with_ingest(queues=(DEAD,)):
        await broker_client.publish(DEAD, b"\x00\xff", exchange="", headers={Header.FAULT_CODE.value: "travels"})
        [letter] = await wait_for_dead_letters(repository, code="travels")
    file = tmp_path / "letters.jsonl"
    assert (await atelier("dead-letters", "export", "--code", "travels", "--to", str(file)))[0] == 0
    await pool.execute("delete from atelier.dead_letters where id = $1", letter.id)

    file.write_text(file.read_text() + "{}\n")
    status, _, err = await atelier("dead-letters", "import", str(file), "--yes")
    assert (status, "line 2" in err) == (1, True)
    file.write_text(file.read_text().removesuffix("{}\n"))
    for expected in (1, 0):
        _, out, _ = await atelier("dead-letters", "import", str(file), "--yes", "--json")
        assert json.loads(out)["letters"] == expected
    imported = await repository.get(letter.id)
    assert [entry.kind for entry in imported.history] == ["failed", "imported"]
    assert imported.model_copy(update={"history": letter.history, "changed_at": letter.changed_at}) == letter


async def test_actor_ingests_dead_letters_and_relays_staged_replays(
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    atelier: Atelier,
    bus_settings: BusSettings,
    store_folder: Path,
    tmp_path: Path,
) -> None:
    """`atelier run dead-letters` as a process: it ingests every queue, relays replays, and exits on SIGTERM."""
    assert bus_settings.database_url is not None
    environment = {
        "AMQP_URL": bus_settings.amqp_url.get_secret_value(),
        "DATABASE_URL": bus_settings.database_url.get_secret_value(),
        "STORE_URL": store_folder.as_uri(),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    arguments = ["-m", "ops.cli", "run", "dead-letters"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment, cwd=tmp_path, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await store_dead_letter(repository, broker_client)
        status, out, _ = await atelier("dead-letters", "replay", "--code", "by-actor", "--yes", "--no-wait", "--json")
        assert (status, json.loads(out)["letters"]) == (0, 1)

        async def sent() -> bool:
            [letter] = (await repository.find(Selection(code="by-actor"), 5)).letters
            return letter.forwarded_at is not None

        await wait_until(sent)
    finally:
        process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def store_dead_letter(repository: DeadLetterRepository, broker_client: BrokerClient) -> None:
    """Publish a dead letter as soon as its queue exists, and wait until it is stored."""

    async def published() -> bool:
        try:
            await broker_client.publish(
                DEAD, {"name": "z", "images": [CLAIM]}, exchange="", message_id="by-actor", headers={Header.FAULT_CODE.value: "by-actor"}
            )
        except PublishError:
            return False
        return True

    await wait_until(published, 20)
    await wait_for_dead_letters(repository, code="by-actor")
