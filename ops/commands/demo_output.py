"""What the demo shows: a progress bar while it works, each stop with its time, and a timeline at the end."""

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

TIMELINE_WIDTH = 40


class DemoDisplay:
    """Progress goes to standard error; what the actors say is kept back, and shown only when something goes wrong."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        self._task = bar.add_task("", total=100)
        self._lines: deque[str] = deque(maxlen=40)

    def set_status(self, status: str) -> None:
        self._bar.update(self._task, description=status)

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
        """What the actors said last."""
        for line in self._lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def summary(self, report: dict[str, Any], events: Sequence[Event]) -> str:
        """The timeline, and where the picture lies."""
        page = Console(file=io.StringIO(), width=100, force_terminal=sys.stdout.isatty())
        page.print(timeline_table(events))
        told = ", ".join(f"{call['percent']} %" if "percent" in call else call["path"].rsplit("/", 1)[-1] for call in report["webhooks"])
        page.print(f"webhooks: {told}", highlight=False)
        if said := report.get("ad"):
            page.print(format_ad(said), highlight=False)
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
    """The copy and the verdicts in words. What came to no verdict is not told of."""
    verdicts = [(VERDICT_PHRASES[name][0] if ad[name] > 0.5 else VERDICT_PHRASES[name][1]) for name in VERDICT_PHRASES if name in ad]
    measured = [f"contrast {ad['contrast_ratio']:.1f}"] if "contrast_ratio" in ad else []
    return f"“{ad['text']}”: {', '.join([*verdicts, *measured])}"


VERDICT_PHRASES = {
    "is_valid": ("the picture was let through", "no picture was let through"),
    "relevance_score": ("it fits the copy", "it does not fit the copy"),
    "occlusion": ("something that matters is covered", "nothing that matters is covered"),
    "contrast_ok": ("it can be read", "it can hardly be read"),
    "cta_present": ("it calls to act", "it calls to nothing"),
}
"""What is said where a verdict is true, or a score over a half; and where it is not."""


def is_itinerary_step(event: Event) -> bool:
    """True for a stop of the itinerary that is done; progress webhooks run beside it."""
    return event.kind is EventKind.COMPLETED and event.step != "job" and (event.result or {}).get("kind") != "progress"


def timeline_table(events: Sequence[Event]) -> Table:
    """One row a stop: how long it waited (light) and worked (dark), against the time of the whole job."""
    main = [event for event in events if is_itinerary_step(event)]
    table = Table("stop", "waited s", "worked s", "timeline", box=None, header_style="bold", pad_edge=False)
    if not main:
        return table
    begin = min(stop.at.timestamp() - (stop.seconds or 0) - (stop.queued_seconds or 0) for stop in main)
    scale = TIMELINE_WIDTH / max(max(stop.at.timestamp() for stop in main) - begin, 0.001)
    for stop in main:
        worked, waited = stop.seconds or 0, stop.queued_seconds or 0
        before = stop.at.timestamp() - worked - waited - begin
        bar = " " * round(before * scale) + "░" * round(waited * scale) + "█" * max(1, round(worked * scale))
        table.add_row(stop.step, f"{waited:.2f}", f"{worked:.2f}", bar)
    return table


@contextmanager
def open_display(*, quiet: bool) -> Iterator[DemoDisplay]:
    console = Console(file=sys.stderr, quiet=quiet)
    columns = (SpinnerColumn(), BarColumn(24), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        screen = DemoDisplay(console, bar)
        try:
            yield screen
        except BaseException:
            screen.print_recent_lines()
            raise
