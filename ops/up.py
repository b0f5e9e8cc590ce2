"""`atelier up`: the local services and one process per actor in the foreground, until Ctrl-C."""

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

from bus.observability.logs import configure_logging, mask_text
from bus.settings import BusSettings
from ops.commands.prepare import declare_all
from ops.errors import SetupError
from ops.local.rabbitmq_users import PASSWORDS_FILE
from ops.local.stack import ServiceUrls, llm_server, local_stack, stop_orphans
from ops.local.tiny_models import TINY_DIFFUSION, TINY_VLM, make_tiny_models
from ops.registry import MODULES, NEEDS_MODELS
from ops.settings import LocalSettings, inherited_environment
from ops.supervisor import GATEWAY, READY_SECONDS, LineWriter, open_supervisor

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")


def up(arguments: Namespace) -> int:
    configure_logging()
    asyncio.run(run_until_stopped(arguments.steps or [*MODULES, GATEWAY], LocalSettings()))
    return 0


def down(_: Namespace) -> int:
    stop_orphans(LocalSettings())
    return 0


async def run_until_stopped(steps: Sequence[str], settings: LocalSettings) -> None:
    """Run until SIGINT or SIGTERM; then stop the actors first and the services after them."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    console = Console(file=sys.stderr, highlight=False)
    llm_servers = [llm_server(settings.local_folder.resolve())] if needs_llm_server(steps, inherited_environment()) else []
    async with local_stack(settings, *llm_servers) as urls:
        environment = await actor_environment(urls, steps, settings)
        for server in llm_servers:
            environment |= server.environment
        gateway_environment = environment | {"AMQP_URL": urls.amqp_url_of("gateway")}
        if GATEWAY in steps and urls.amqp_urls:  # its user may not declare the queues
            await declare_all(BusSettings.model_validate({"amqp_url": urls.amqp_url}))
        async with open_supervisor(steps, environment, coloured_line_writer(console, steps), gateway_environment) as supervisor:
            if await completes_before(stop, supervisor.wait_until_ready(timeout_seconds=READY_SECONDS)):
                console.print("[bold]Everything is up.[/bold] Ctrl-C stops it.")
                console.print(describe_services(urls, settings), soft_wrap=True, markup=False)
                await stop.wait()
            console.print("Stopping …")


def describe_services(urls: ServiceUrls, settings: LocalSettings) -> str:
    """The URLs of the services without passwords, and where the passwords are."""
    lines = [f"  {name}={mask_text(value)}" for name, value in urls.environment.items() if name != "ATELIER_SECRET"]
    if urls.amqp_urls:
        lines.append(f"  users and passwords of the broker: {settings.local_folder.resolve() / 'rabbitmq' / PASSWORDS_FILE}")
    return "\n".join(lines)


def needs_llm_server(steps: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the text actor runs and no language model server or engine is configured for it."""
    return "text" in steps and {"VLLM_SERVER_URL", "TEXT_ENGINE"}.isdisjoint(environment)


async def completes_before(stop: asyncio.Event, coroutine: Coroutine[None, None, None]) -> bool:
    """Await `coroutine` and return True; or cancel it and return False as soon as `stop` is set."""
    running, stopping = asyncio.create_task(coroutine), asyncio.create_task(stop.wait())
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not running.done():
        running.cancel()
        return False
    running.result()
    return True


async def actor_environment(urls: ServiceUrls, steps: Sequence[str], settings: LocalSettings) -> dict[str, str]:
    """The environment of the actors. Where no model is configured they get the tiny models and may load their LoRAs."""
    environment = {"PYTHONUNBUFFERED": "1"} | inherited_environment() | urls.environment
    if not NEEDS_MODELS.isdisjoint(steps) and not {"IMAGE_MODEL", "VLM_MODEL"} <= environment.keys():
        folder = settings.local_folder.resolve() / "models"
        paths = await to_thread.run_sync(ensure_tiny_models, folder)
        tiny = {"IMAGE_MODEL": str(paths[TINY_DIFFUSION]), "VLM_MODEL": str(paths[TINY_VLM]), "ASSET_ROOTS": str(folder)}
        environment = tiny | environment
    return environment


def ensure_tiny_models(folder: Path) -> dict[str, Path]:
    """Make the tiny models. Raises SetupError when the `models` extra is not installed."""
    try:
        return make_tiny_models(folder)
    except ImportError as error:
        message = f"The image actor needs the models extra ({error}): pip install -e '.[models]' --constraint constraints.txt"
        raise SetupError(message) from error


def coloured_line_writer(console: Console, steps: Sequence[str]) -> LineWriter:
    """Prints each line behind the name of its step, in the step's colour."""
    width = max(map(len, steps))
    colours = dict(zip(steps, cycle(COLOURS), strict=False))

    def write_line(step: str, line: str) -> None:
        console.print(Text.assemble((f"{step:>{width}} │ ", colours[step]), Text.from_ansi(line)), soft_wrap=True)

    return write_line
