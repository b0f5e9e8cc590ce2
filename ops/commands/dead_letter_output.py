"""The text output of `atelier dead-letters`: plain lines for a narrow terminal."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from contracts.dead_letter import DeadLetterGroup, DeadLetters, Edited, Moved, ReplayDifference, Replayed, WholeDeadLetter

MAX_BODY_CHARS = 4000
MAX_MESSAGE_CHARS = 100

STATE_PARTICIPLES = {
    "archived": "archived",
    "unresolved": "restored",
    "resolved": "marked as resolved",
    "purged": "deleted permanently",
    "imported": "imported",
}


def format_count(count: int) -> str:
    return f"{count:,} letter{'' if count == 1 else 's'}"


def format_list(page: DeadLetters) -> str:
    if not page.letters:
        return "No letters match."
    rows = [
        f"{letter.id}  {format_time(letter.last_failed_at)}  {letter.state:<16}  {letter.step:<12}  {letter.code:<24}"
        f"{f'  ×{letter.failures}' if letter.failures > 1 else ''}  {shorten(letter.message)}".rstrip()
        for letter in page.letters
    ]
    remaining = page.total - len(page.letters)
    return "\n".join([*rows, *([f"… and {remaining:,} more (--limit, --offset)"] if remaining > 0 else [])])


def format_groups(groups: Sequence[DeadLetterGroup]) -> str:
    return "\n\n".join(map(format_group, groups)) or "No letters match."


def format_group(group: DeadLetterGroup) -> str:
    cause = " · ".join(part for part in (group.step, group.code, group.exception_type, group.tenant) if part)
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(group.states.items()))
    time = f"from {format_time(group.at)}" if group.at else f"{format_time(group.first_failed_at)} to {format_time(group.last_failed_at)}"
    lines = [f"{group.group_id}  {group.letters:>6,}  {cause}", f"    {time}: {states}", f"    {shorten(group.message)}"]
    return "\n".join([*lines, *([f"    {' > '.join(group.shape)}"] if group.shape else [])])


def format_letter(letter: WholeDeadLetter) -> str:
    fields = {
        "letter": letter.id,
        "state": f"{letter.state}, failed {letter.failures} times, replayed {letter.replays} times",
        "cause": f"{letter.code}: {letter.message}",
        "exception": letter.exception_type,
        "attempts": letter.attempts,
        "group": letter.group_id,
        "failed": f"first {format_time(letter.first_failed_at)}, last {format_time(letter.last_failed_at)}",
        "step": letter.step,
        "goes back to": letter.target or "unknown: the queue in which it failed is not recorded",
        "came from": f"{letter.origin_exchange or 'the default exchange'}, key {letter.origin_key or '?'}",
        "message": letter.message_id,
        "sent as": letter.sent_as if letter.sent_as != letter.message_id else None,
        "edited from": letter.edited_from,
        "job": letter.job_id,
        "tenant": letter.tenant,
        "type": letter.type,
    }
    lines = [f"{name:>13}  {value}" for name, value in fields.items() if value is not None]
    lines += [
        "",
        "history",
        *(f"  {format_time(entry.at)}  {entry.kind:<16} {format_details(entry.said)}".rstrip() for entry in letter.history),
    ]
    lines += ["", "headers", *(f"  {name}: {shorten(str(value))}" for name, value in sorted(letter.headers.items()) if "stack" not in name)]
    if letter.properties:
        lines += ["", "properties with which it died", *(f"  {each.name}: {each.type} {shorten(each.value)}" for each in letter.properties)]
    if letter.stack:
        lines += ["", "stack", *(f"  {line}" for line in letter.stack.rstrip().splitlines())]
    return "\n".join([*lines, "", f"body, {letter.size:,} bytes", format_body(letter)])


def format_body(letter: WholeDeadLetter) -> str:
    if letter.body is None:
        return f"  base64: {(letter.body_base64 or '')[:MAX_BODY_CHARS]}"
    try:
        text = json.dumps(json.loads(letter.body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = letter.body
    return "\n".join(f"  {line}" for line in text[:MAX_BODY_CHARS].splitlines()) + ("\n  …" if len(text) > MAX_BODY_CHARS else "")


def format_replayed(result: Replayed, sent: int | None) -> str:
    left = f"\n{format_count(result.without_target)} left out: the queue that failed is unknown." if result.without_target else ""
    if result.dry_run:
        changes = format_differences(result.differences, result.compared, result.letters)
        targets = "".join(f"\n  to {queue}: {format_count(count)}" for queue, count in result.targets.items())
        return f"{format_count(result.letters)} would be sent again. Add --yes to do it.{left}{targets}{changes}"
    if sent is None:
        return f"{format_count(result.letters)} staged as replay {result.replay_id}; the running dead-letters actor sends them.{left}"
    return f"{format_count(sent)} of {result.letters:,} sent again (replay {result.replay_id}).{left}"


def format_differences(differences: Sequence[ReplayDifference], compared: int, letters: int) -> str:
    """Lines to print before a replay, each after a line end; empty when the messages equal those that died."""
    if not differences:
        return ""
    scope = f" (of the first {compared:,} letters)" if compared < letters else ""
    lines = [f"\nDifferences from the messages that died{scope}; all else is sent as it died:"]
    for one in differences:
        values = " → ".join(shorten(value) for value in (one.died, one.sent) if value is not None)
        lines.append(f"  {one.name} is {one.change} in {format_count(one.letters)}: {one.reason}" + (f" ({values})" if values else ""))
    return "\n".join(lines)


def format_edited(result: Edited, body: dict[str, Any], sent: int | None) -> str:
    check = (
        f"It satisfies the contract {result.contract}." if result.contract else "The queue has no known contract: only JSON was checked."
    )
    text = json.dumps(body, indent=2, ensure_ascii=False)
    if result.dry_run:
        return f"{text}\n{check} Add --yes to send it.{format_differences(result.differences, 1, 1)}"
    return f"{check} {'Sent' if sent else 'Staged'} as message {result.message_id}."


def format_moved(result: Moved) -> str:
    if result.dry_run:
        return f"{format_count(result.letters)} would be {STATE_PARTICIPLES[result.to]}. Add --yes to do it."
    return f"{format_count(result.letters)} {STATE_PARTICIPLES[result.to]}."


def format_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 1] + "…"


def format_details(details: dict[str, Any]) -> str:
    return ", ".join(f"{name} {shorten(str(value))}" for name, value in details.items() if value not in ("", None))
