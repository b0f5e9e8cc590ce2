"""`atelier up`: the local services and the actors' processes in the foreground, until Ctrl-C."""

import asyncio
import signal
import sys
from argparse import Namespace
from collections.abc import Coroutine, Sequence
from itertools import cycle
from pathlib import Path

from anyio import to_thread
from rich.console import Console
from rich.text import Text

from bus.masking import mask_text
from bus.observability.logs import configure_logging
from bus.settings import BusSettings
from ops.commands.prepare import declare_all
from ops.local.model_choice import (
    ModelChoice,
    choose_models,
    fetch_missing_models,
    format_choices,
    merged_environment,
    require_libraries,
)
from ops.local.rabbitmq_users import PASSWORDS_FILE
from ops.local.stack import ServiceUrls, local_stack, stop_orphans
from ops.local.tiny_models import copy_trained_models, tiny_model_paths
from ops.registry import MODULES, OPTIONAL, expand_groups, processes_of
from ops.settings import LocalSettings, inherited_environment
from ops.supervisor import GATEWAY, LineWriter, open_supervisor

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")


def up(arguments: Namespace) -> int:
    configure_logging()
    named = arguments.steps or [*(step for step in MODULES if step not in OPTIONAL), GATEWAY]
    steps = expand_groups([name for name in named if name != GATEWAY])
    asyncio.run(run_until_stopped([*processes_of(steps), *([GATEWAY] if GATEWAY in named else [])], steps, LocalSettings()))
    return 0


def down(_: Namespace) -> int:
    stop_orphans(LocalSettings())
    return 0


async def run_until_stopped(processes: Sequence[str], steps: Sequence[str], settings: LocalSettings) -> None:
    """Run until SIGINT or SIGTERM; then stop the actors first and the services after them."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    console = Console(file=sys.stderr, highlight=False)
    folder = settings.local_folder.resolve()
    if not await completes_before(stop, fetch_missing_models(steps, folder / "models", may_install=settings.may_install)):
        return
    choices = choose_models(steps, tiny_model_paths(folder / "models"))
    require_libraries(choices)
    if choices:
        console.print(f"Models:\n{format_choices(choices)}", soft_wrap=True, markup=False)
    async with local_stack(settings) as urls:
        environment = await actor_environment(urls, choices, folder / "models")
        gateway_environment = environment | {"AMQP_URL": urls.amqp_url_of("gateway")}
        if GATEWAY in processes and urls.amqp_urls:  # its user may not declare the queues
            await declare_all(BusSettings.model_validate({"amqp_url": urls.amqp_url}))
        async with open_supervisor(processes, environment, coloured_line_writer(console, processes), gateway_environment) as supervisor:
            if await completes_before(stop, supervisor.wait_until_ready(timeout_seconds=settings.ready_seconds)):
                console.print("[bold]Everything is up.[/bold] Ctrl-C stops it.")
                console.print(describe_services(urls, settings), soft_wrap=True, markup=False)
                await stop.wait()
            console.print("Stopping …")


def describe_services(urls: ServiceUrls, settings: LocalSettings) -> str:
    """The URLs of the services without passwords, and where the passwords are."""
    lines = [f"  {name}={mask_text(value)}" for name, value in urls.environment.items() if value and name != "ATELIER_SECRET"]
    if urls.amqp_urls:
        lines.append(f"  users and passwords of the broker: {settings.local_folder.resolve() / 'rabbitmq' / PASSWORDS_FILE}")
    return "\n".join(lines)


async def completes_before(stop: asyncio.Event, coroutine: Coroutine[None, None, None]) -> bool:
    """Await `coroutine` and return True; or, as soon as `stop` is set, cancel it, wait until it has cleaned up, and return False."""
    running, stopping = asyncio.create_task(coroutine), asyncio.create_task(stop.wait())
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not running.done():
        running.cancel()
        await asyncio.wait([running])
        return False
    running.result()
    return not stop.is_set()


async def actor_environment(urls: ServiceUrls, choices: Sequence[ModelChoice], models: Path) -> dict[str, str]:
    """The environment of the actors, with the chosen models. Toys are copied to the folder `models` where they are missing."""
    if any(choice.is_toy for choice in choices):
        await to_thread.run_sync(copy_trained_models, models)
    return merged_environment({"PYTHONUNBUFFERED": "1"} | inherited_environment() | urls.environment, choices, models)


def coloured_line_writer(console: Console, processes: Sequence[str]) -> LineWriter:
    """Prints each line behind the name of its process, in the process's colour."""
    width = max(map(len, processes))
    colours = dict(zip(processes, cycle(COLOURS), strict=False))

    def write_line(process: str, line: str) -> None:
        console.print(Text.assemble((f"{process:>{width}} │ ", colours[process]), Text.from_ansi(line)), soft_wrap=True)

    return write_line
