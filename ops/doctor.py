"""`atelier doctor`: looks at this machine and its parts from outside and names the cure for whatever is missing. Changes nothing."""

import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict

from rich.console import Console

from ops import doctor_machine as machine
from ops import doctor_parts as parts
from ops.errors import SetupError
from ops.findings import Check
from ops.settings import LocalSettings
from ops.workshop import MODULES

AT_HAND: list[Callable[[LocalSettings], Check]] = [
    machine.python,
    machine.packages,
    machine.image_model,
    machine.seeing_model,
    machine.device,
    machine.room,
]
ASKED: list[Callable[[LocalSettings], Awaitable[Check]]] = [parts.broker, parts.database, parts.store, parts.webhooks]


def doctor(arguments: Namespace) -> int:
    """Returns 0 when nothing is wrong. Raises SetupError for a step that nobody knows."""
    if unknown := [step for step in arguments.steps if step not in MODULES]:
        raise SetupError(f"No actor serves {', '.join(unknown)}. There are: {', '.join(MODULES)}.")
    checks = asyncio.run(examine(LocalSettings(), arguments.steps))
    ok = all(check.ok for check in checks)
    if arguments.json:
        sys.stdout.write(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=2) + "\n")
    else:
        tell(checks)
    return 0 if ok else 1


async def examine(settings: LocalSettings, steps: Sequence[str] = ()) -> list[Check]:
    asked = await asyncio.gather(*(ask(settings) for ask in ASKED), parts.queues(settings, steps))
    return [*(look(settings) for look in AT_HAND), *asked]


def tell(checks: list[Check]) -> None:
    console = Console(highlight=False)
    for check in checks:
        sign = "[green]✓[/green]" if check.ok else "[red]✗[/red]"
        console.print(sign, f"{check.name}: {check.detail}", markup=True, soft_wrap=True)
        if not check.ok:
            console.print(f"    cure: {check.cure}", markup=False, soft_wrap=True)
