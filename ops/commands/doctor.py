"""`atelier doctor`: looks at this machine and its parts from outside and names the cure for whatever is missing. Changes nothing."""

import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict

from rich.console import Console

from ops.commands import doctor_host as machine
from ops.commands import doctor_services as parts
from ops.commands.doctor_host import Check
from ops.errors import SetupError
from ops.registry import MODULES
from ops.settings import LocalSettings

HOST_CHECKS: list[Callable[[LocalSettings], Check]] = [
    machine.check_python,
    machine.check_packages,
    machine.check_image_model,
    machine.check_vision_model,
    machine.check_device,
    machine.check_disk_space,
]
SERVICE_CHECKS: list[Callable[[LocalSettings], Awaitable[Check]]] = [
    parts.check_broker,
    parts.check_database,
    parts.check_store,
    parts.check_webhook_target,
]


def doctor(arguments: Namespace) -> int:
    """Returns 0 when nothing is wrong. Raises SetupError for a step that nobody knows."""
    if unknown := [step for step in arguments.steps if step not in MODULES]:
        raise SetupError(f"No actor serves {', '.join(unknown)}. There are: {', '.join(MODULES)}.")
    checks = asyncio.run(run_checks(LocalSettings(), arguments.steps))
    ok = all(check.ok for check in checks)
    if arguments.json:
        sys.stdout.write(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=2) + "\n")
    else:
        print_checks(checks)
    return 0 if ok else 1


async def run_checks(settings: LocalSettings, steps: Sequence[str] = ()) -> list[Check]:
    asked = await asyncio.gather(*(ask(settings) for ask in SERVICE_CHECKS), parts.check_queues(settings, steps))
    return [*(look(settings) for look in HOST_CHECKS), *asked]


def print_checks(checks: list[Check]) -> None:
    console = Console(highlight=False)
    for check in checks:
        sign = "[green]✓[/green]" if check.ok else "[red]✗[/red]"
        console.print(sign, f"{check.name}: {check.detail}", markup=True, soft_wrap=True)
        if not check.ok:
            console.print(f"    cure: {check.cure}", markup=False, soft_wrap=True)
