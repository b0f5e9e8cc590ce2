"""Dead letters on a terminal: plain text that fits a narrow window and can be copied."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from contracts.dead_letter import DeadLetterGroup, DeadLetters, Edited, Moved, Replayed, WholeDeadLetter

BODY_SHOWN = 4000
MESSAGE_SHOWN = 100

PAST = {
    "archived": "archived",
    "unresolved": "restored",
    "resolved": "declared resolved",
    "purged": "deleted for ever",
    "imported": "imported",
}


def letters(count: int) -> str:
    return f"{count:,} letter{'' if count == 1 else 's'}"


def listed(page: DeadLetters) -> str:
    if not page.letters:
        return "No such letters."
    rows = [
        f"{letter.id}  {when(letter.last_failed_at)}  {letter.state:<16}  {letter.step:<12}  {letter.code:<24}"
        f"{f'  ×{letter.failures}' if letter.failures > 1 else ''}  {short(letter.message)}".rstrip()
        for letter in page.letters
    ]
    rest = page.total - len(page.letters)
    return "\n".join([*rows, *([f"… and {rest:,} more (--limit, --offset)"] if rest > 0 else [])])


def grouped(groups: Sequence[DeadLetterGroup]) -> str:
    return "\n\n".join(map(group, groups)) or "No such letters."


def group(found: DeadLetterGroup) -> str:
    cause = " · ".join(part for part in (found.step, found.code, found.exception_type, found.tenant) if part)
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(found.states.items()))
    time = f"{when(found.at)} and on" if found.at else f"{when(found.first_failed_at)} to {when(found.last_failed_at)}"
    lines = [f"{found.group_id}  {found.letters:>6,}  {cause}", f"    {time}: {states}", f"    {short(found.message)}"]
    return "\n".join([*lines, *([f"    {' > '.join(found.shape)}"] if found.shape else [])])


def shown(letter: WholeDeadLetter) -> str:
    facts = {
        "letter": letter.id,
        "state": f"{letter.state}, failed {letter.failures} times, replayed {letter.replays} times",
        "cause": f"{letter.code}: {letter.message}",
        "exception": letter.exception_type,
        "attempts": letter.attempts,
        "group": letter.group_id,
        "failed": f"first {when(letter.first_failed_at)}, last {when(letter.last_failed_at)}",
        "step": letter.step,
        "goes back to": letter.target or "nobody knows: nothing on it tells which queue failed",
        "came from": f"{letter.origin_exchange or 'the default exchange'}, key {letter.origin_key or '?'}",
        "message": letter.message_id,
        "sent as": letter.sent_as if letter.sent_as != letter.message_id else None,
        "edited from": letter.edited_from,
        "job": letter.job_id,
        "tenant": letter.tenant,
        "type": letter.type,
    }
    lines = [f"{name:>13}  {fact}" for name, fact in facts.items() if fact is not None]
    lines += ["", "history", *(f"  {when(entry.at)}  {entry.kind:<16} {said(entry.said)}".rstrip() for entry in letter.history)]
    lines += ["", "headers", *(f"  {name}: {short(str(value))}" for name, value in sorted(letter.headers.items()) if "stack" not in name)]
    if letter.stack:
        lines += ["", "stack", *(f"  {line}" for line in letter.stack.rstrip().splitlines())]
    return "\n".join([*lines, "", f"body, {letter.size:,} bytes", body(letter)])


def body(letter: WholeDeadLetter) -> str:
    if letter.body is None:
        return f"  base64: {(letter.body_base64 or '')[:BODY_SHOWN]}"
    try:
        text = json.dumps(json.loads(letter.body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = letter.body
    return "\n".join(f"  {line}" for line in text[:BODY_SHOWN].splitlines()) + ("\n  …" if len(text) > BODY_SHOWN else "")


def replayed(told: Replayed, sent: int | None) -> str:
    left = f"\n{letters(told.without_target)} left out: nothing tells which queue failed." if told.without_target else ""
    if told.dry_run:
        return f"{letters(told.letters)} would be sent again. Say --yes to do it.{left}"
    if sent is None:
        return f"{letters(told.letters)} staged as replay {told.replay_id}; the running dead-letters actor sends them.{left}"
    return f"{letters(sent)} of {told.letters:,} sent again (replay {told.replay_id}).{left}"


def edited(told: Edited, body: dict[str, Any], sent: int | None) -> str:
    kept = (
        f"It keeps the contract {told.contract}."
        if told.contract
        else "Nobody here knows that queue's contract: it was checked as JSON only."
    )
    text = json.dumps(body, indent=2, ensure_ascii=False)
    if told.dry_run:
        return f"{text}\n{kept} Say --yes to send it."
    return f"{kept} {'Sent' if sent else 'Staged'} as message {told.message_id}."


def moved(told: Moved) -> str:
    if told.dry_run:
        return f"{letters(told.letters)} would be {PAST[told.to]}. Say --yes to do it."
    return f"{letters(told.letters)} {PAST[told.to]}."


def when(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MESSAGE_SHOWN else line[: MESSAGE_SHOWN - 1] + "…"


def said(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {short(str(value))}" for name, value in facts.items() if value not in ("", None))
