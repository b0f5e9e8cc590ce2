"""The workshop at a glance: who is alive, what waits, what the engines do, and what is wrong, in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from bus.roll_call import Depth, call_roll, depths_of
from contracts.channels import dead_queue, work_queue
from contracts.presence import Presence, StepPresence
from contracts.steps import COMMANDS
from gateway.callers import operators_only
from gateway.console.counter import ConsoleRoute
from gateway.console.rendering import page
from gateway.console.sessions import PATH

ROLL_SECONDS = 3.0
STEPS = (*COMMANDS, "ledger", "dead-letters")
UNSERVED = "{count} orders wait for {step} and nobody takes them. Start it: atelier run {step}"
UNTAKEN = "{count} dead letters of {step} were not taken in. Start: atelier run dead-letters"
IDLE = "{step} at {worker} does no work: {reason}"

router = APIRouter(prefix=f"{PATH}/workshop", route_class=ConsoleRoute, include_in_schema=False, dependencies=[Depends(operators_only)])


@dataclass(frozen=True)
class Row:
    """One queue, with all who serve it."""

    step: str
    depth: Depth | None
    dead: int
    crew: list[StepPresence]

    @property
    def in_hand(self) -> int:
        return sum(at.in_hand for at in self.crew)

    @property
    def per_minute(self) -> float | None:
        known = [at.per_minute for at in self.crew if at.per_minute is not None]
        return sum(known) if known else None

    @property
    def idle(self) -> bool:
        return not self.crew and (self.depth is None or not (self.depth.ready or self.depth.consumers)) and not self.dead


@dataclass(frozen=True)
class Trouble:
    """Words with what fills them, so that each language can say it."""

    text: str
    filling: dict[str, Any]
    since: datetime | None = None


@router.get("")
async def workshop(request: Request) -> Response:
    outbox = request.app.state.outbox
    present = await call_roll(outbox, ROLL_SECONDS)
    steps = [*STEPS, *sorted({at.step for here in present for at in here.steps} - set(STEPS))]
    queues = [*map(work_queue, steps), *map(dead_queue, steps)]
    depths = await depths_of(outbox, queues)
    rows = [row_of(step, depths, present) for step in steps]
    shown = [row for row in rows if not row.idle]
    return page(request, "workshop.html", present=present, rows=shown, warnings=list(warnings_of(rows, present)))


def row_of(step: str, depths: dict[str, Depth | None], present: list[Presence]) -> Row:
    crew = [at for here in present for at in here.steps if at.step == step]
    dead = depths.get(dead_queue(step))
    return Row(step, depths.get(work_queue(step)), dead.ready if dead else 0, crew)


def warnings_of(rows: list[Row], present: list[Presence]) -> Iterator[Trouble]:
    if not present and not any(row.depth and row.depth.consumers for row in rows):
        yield Trouble("No actor answers. Start them: atelier up, or atelier run STEP.", {})
    for row in rows:
        if row.depth and row.depth.ready and not row.depth.consumers:
            yield Trouble(UNSERVED, {"count": row.depth.ready, "step": row.step})
        if row.dead:
            yield Trouble(UNTAKEN, {"count": row.dead, "step": row.step})
    for here in present:
        told = set()
        for at in here.steps:
            if at.reason:
                told |= {f"queue:{at.step}", f"engine:{at.step}"}
                yield Trouble(IDLE, {"step": at.step, "worker": here.worker, "reason": at.reason}, at.since)
        for part, reason in here.parts.items():
            if reason and part not in told:
                yield Trouble("{part} of {worker}: {reason}", {"part": part, "worker": here.worker, "reason": reason})
