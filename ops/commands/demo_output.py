"""The output of the demo: a progress bar, the duration of each step, and a timeline at the end."""

import io
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from contracts.event import Event, EventKind
from ops.commands.demo_phases import format_phases
from ops.local.model_choice import ModelChoice, format_choices

TIMELINE_WIDTH = 40


class DemoDisplay:
    """Progress goes to standard error. Output of the actors is buffered, and printed only after an error."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        self._task = bar.add_task("", total=100)
        self._lines: deque[str] = deque(maxlen=40)

    def set_status(self, status: str) -> None:
        self._bar.update(self._task, description=status)

    def show_models(self, choices: Sequence[ModelChoice]) -> None:
        self._console.print(f"models:\n{format_choices(choices)}", markup=False, highlight=False, soft_wrap=True)

    def record_line(self, step: str, line: str) -> None:
        self._lines.append(f"{step}: {line}")

    def show_event(self, event: Event) -> None:
        if event.progress:
            self.set_status(f"image: step {event.progress.current_step} of {event.progress.total_steps}")
            self._bar.update(self._task, completed=event.progress.progress_percent * 0.9)
        elif event.fault:
            self._console.print(f"[red]✗[/red] {event.step}: {event.fault.code}: {event.fault.message}", highlight=False)
        elif is_itinerary_step(event):
            self._console.print(f"[green]✓[/green] {event.step:<10} {event.seconds or 0:7.2f} s", highlight=False)
            self.set_status(f"{event.step} done")

    def print_recent_lines(self) -> None:
        """The last output of the actors."""
        for line in self._lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def summary(self, report: dict[str, Any], events: Sequence[Event]) -> str:
        """The timeline, the webhooks and the path of the picture, or the fault."""
        page = Console(file=io.StringIO(), width=100, force_terminal=sys.stdout.isatty())
        page.print(timeline_table(events))
        calls = (f"{call['percent']} %" if "percent" in call else call["path"].rsplit("/", 1)[-1] for call in report["webhooks"])
        page.print(f"webhooks: {', '.join(calls)}", highlight=False)
        if ad := report.get("ad"):
            page.print(format_ad(ad), highlight=False)
        page.print(f"time: {format_phases(report['phases'])}", highlight=False, soft_wrap=True)
        if report["ok"]:
            page.print(
                f"{report['width']}×{report['height']} in {report['seconds']:.1f} s: {report['image_path']}",
                highlight=False,
                soft_wrap=True,
            )
        else:
            page.print(f"[red]failed[/red]: {report.get('fault', 'the picture or its webhook is missing')}", highlight=False)
        return page.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def format_ad(ad: dict[str, Any]) -> str:
    """The copy and the verdicts in words. A verdict that is missing is left out."""
    verdicts = [(VERDICT_PHRASES[name][0] if ad[name] > 0.5 else VERDICT_PHRASES[name][1]) for name in VERDICT_PHRASES if name in ad]
    measured = [f"contrast {ad['contrast_ratio']:.1f}"] if "contrast_ratio" in ad else []
    critic = f" ({ad['toy_critic']} judged, a toy: it accepts every picture with a shape)" if "toy_critic" in ad else ""
    return f"“{ad['text']}”: {', '.join([*verdicts, *measured])}{critic}"


VERDICT_PHRASES = {
    "is_valid": ("the picture was accepted", "no picture was accepted"),
    "relevance_score": ("it fits the copy", "it does not fit the copy"),
    "occlusion": ("the text covers something important", "the text covers nothing important"),
    "contrast_ok": ("it is legible", "it is hardly legible"),
    "cta_present": ("it has a call to action", "it has no call to action"),
}
"""Phrases for a verdict that is true or a score above one half, and for the opposite."""


def is_itinerary_step(event: Event) -> bool:
    """Whether a step of the itinerary has completed. Progress webhooks are not part of the itinerary."""
    return event.kind is EventKind.COMPLETED and event.step != "job" and (event.result or {}).get("kind") != "progress"


def ends_step(event: Event) -> bool:
    """Whether a step has ended, by completing or by failing."""
    return is_itinerary_step(event) or (event.kind is EventKind.FAILED and event.step != "job")


def timeline_table(events: Sequence[Event]) -> Table:
    """One row per step: its time in the queue (light) and at work (dark), relative to the duration of the job."""
    steps = [event for event in events if is_itinerary_step(event)]
    table = Table("step", "waited s", "worked s", "timeline", box=None, header_style="bold", pad_edge=False)
    if not steps:
        return table
    begin = min(step.at.timestamp() - (step.seconds or 0) - (step.queued_seconds or 0) for step in steps)
    scale = TIMELINE_WIDTH / max(max(step.at.timestamp() for step in steps) - begin, 0.001)
    for step in steps:
        worked, waited = step.seconds or 0, step.queued_seconds or 0
        before = step.at.timestamp() - worked - waited - begin
        bar = " " * round(before * scale) + "░" * round(waited * scale) + "█" * max(1, round(worked * scale))
        table.add_row(step.step, f"{waited:.2f}", f"{worked:.2f}", bar)
    return table


@contextmanager
def open_display(*, quiet: bool) -> Iterator[DemoDisplay]:
    console = Console(file=sys.stderr, quiet=quiet)
    columns = (SpinnerColumn(), BarColumn(24), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        display = DemoDisplay(console, bar)
        try:
            yield display
        except BaseException:
            display.print_recent_lines()
            raise
