"""`atelier up`: the parts and one process per actor in the foreground, until Ctrl-C."""

import asyncio
import signal
import sys
from argparse import Namespace
from collections.abc import Coroutine, Mapping, Sequence
from itertools import cycle
from pathlib import Path

from anyio import to_thread
from rich.console import Console
from rich.text import Text

from bus.logs import open_logs
from ops.crew import GATEWAY, Say, open_crew
from ops.errors import SetupError
from ops.local.stack import Addresses, local_stack, stop_leftovers, writing_server
from ops.models import CRITIC, PAINTER, make_tiny
from ops.settings import LocalSettings, inherited
from ops.workshop import MODULES, NEEDS_MODELS

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
READY_SECONDS = 90.0


def up(arguments: Namespace) -> int:
    open_logs()
    asyncio.run(run(arguments.steps or [*MODULES, GATEWAY], LocalSettings()))
    return 0


def down(_: Namespace) -> int:
    stop_leftovers(LocalSettings())
    return 0


async def run(steps: Sequence[str], settings: LocalSettings) -> None:
    """Until SIGINT or SIGTERM; then the actors leave first, the parts after them."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    console = Console(file=sys.stderr, highlight=False)
    writers = [writing_server(settings.local_folder.resolve())] if needs_a_writer(steps, inherited()) else []
    async with local_stack(settings, *writers) as addresses:
        environment = await environment_of(addresses, steps, settings)
        for writer in writers:
            environment |= writer.environment
        async with open_crew(steps, environment, say_in_colours(console, steps)) as crew:
            if await first_of(stop, crew.ready(timeout_seconds=READY_SECONDS)):
                console.print("[bold]Everything is up.[/bold] Ctrl-C stops it.")
                for name, value in addresses.environment.items():
                    console.print(f"  {name}={value}", soft_wrap=True)
                await stop.wait()
            console.print("Leaving …")


def needs_a_writer(steps: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the text actor runs and nobody has said what writes."""
    return "text" in steps and {"VLLM_SERVER_URL", "TEXT_ENGINE"}.isdisjoint(environment)


async def first_of(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Await `work` and return True; or give it up and return False as soon as `stop` is set."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        return False
    working.result()
    return True


async def environment_of(addresses: Addresses, steps: Sequence[str], settings: LocalSettings) -> dict[str, str]:
    """What the actors read. Whoever names no model gets the tiny ones, made once, and may ask for their LoRAs."""
    environment = {"PYTHONUNBUFFERED": "1"} | inherited() | addresses.environment
    if not NEEDS_MODELS.isdisjoint(steps) and not {"IMAGE_MODEL", "VLM_MODEL"} <= environment.keys():
        folder = settings.local_folder.resolve() / "models"
        made = await to_thread.run_sync(tiny_models, folder)
        tiny = {"IMAGE_MODEL": str(made[PAINTER]), "VLM_MODEL": str(made[CRITIC]), "ASSET_ROOTS": str(folder)}
        environment = tiny | environment
    return environment


def tiny_models(folder: Path) -> dict[str, Path]:
    """Raises SetupError when the `models` extra is not installed."""
    try:
        return make_tiny(folder)
    except ImportError as error:
        message = f"The image actor needs the models extra ({error}): pip install -e '.[models]' --constraint constraints.txt"
        raise SetupError(message) from error


def say_in_colours(console: Console, steps: Sequence[str]) -> Say:
    width = max(map(len, steps))
    colours = dict(zip(steps, cycle(COLOURS), strict=False))

    def say(step: str, line: str) -> None:
        console.print(Text.assemble((f"{step:>{width}} │ ", colours[step]), Text.from_ansi(line)), soft_wrap=True)

    return say
