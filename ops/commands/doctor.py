"""`atelier doctor`: checks this machine and its services from outside and names the remedy for each problem. Changes nothing."""

import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace

from rich.console import Console
from rich.markup import escape

from bus.masking import mask_text
from ops.commands import doctor_host, doctor_models, doctor_services
from ops.commands.doctor_host import Check
from ops.registry import expand_groups
from ops.settings import LocalSettings

HOST_CHECKS: tuple[Callable[[LocalSettings], Check], ...] = (
    doctor_host.check_python,
    doctor_host.check_packages,
    doctor_host.check_image_model,
    doctor_host.check_vision_model,
    doctor_host.check_device,
    doctor_host.check_shaping,
    doctor_host.check_disk_space,
)
SERVICE_CHECKS: tuple[Callable[[LocalSettings], Awaitable[Check]], ...] = (
    doctor_services.check_broker,
    doctor_services.check_database,
    doctor_services.check_store,
    doctor_services.check_webhook_target,
    doctor_services.check_links,
)


def doctor(arguments: Namespace) -> int:
    """Returns 0 when every check passes, warnings included. Raises SetupError for an unknown step."""
    steps = expand_groups(arguments.steps)
    settings = LocalSettings()
    host_checks = [] if arguments.services else [check(settings) for check in HOST_CHECKS]
    checks = [mask_check(check) for check in (*host_checks, *asyncio.run(run_service_checks(settings, steps)))]
    ok = all(check.ok for check in checks)
    if arguments.json:
        sys.stdout.write(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=2) + "\n")
    else:
        print_checks(checks)
    return 0 if ok else 1


def mask_check(check: Check) -> Check:
    """Without secrets, which the error of a library may quote."""
    return replace(check, detail=mask_text(check.detail), cure=mask_text(check.cure))


async def run_service_checks(settings: LocalSettings, steps: Sequence[str] = ()) -> list[Check]:
    services = asyncio.gather(*(check(settings) for check in SERVICE_CHECKS), doctor_services.check_queues(settings, steps))
    checks, model_checks = await asyncio.gather(services, doctor_models.check_model_servers())
    return [*checks, *model_checks]


def print_checks(checks: list[Check]) -> None:
    console = Console(highlight=False)
    for check in checks:
        sign = "[yellow]![/yellow]" if check.warning else "[green]✓[/green]" if check.ok else "[red]✗[/red]"
        console.print(sign, escape(f"{check.name}: {check.detail}"), markup=True, soft_wrap=True)
        if check.cure:
            console.print(f"    cure: {check.cure}", markup=False, soft_wrap=True)
