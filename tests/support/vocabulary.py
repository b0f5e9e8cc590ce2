"""Words that this project does not use any more, and what it says instead. Names on the wire stay as released."""

import re
from collections.abc import Iterator
from pathlib import Path

RETIRED: dict[str, str] = {
    "bury": "dead-letter", "burial": "dead-letter", "buried": "dead-lettered", "buries": "dead-letters", "burying": "dead-lettering",
    "cabinet": "repository",
    "caretaker": "ops",
    "crew": "workers",
    "darkroom": "decode thread",
    "desk": "handler",
    "ears": "event queues",
    "easel": "engine fixture",
    "forgetful": "null",
    "happening": "event",
    "ladder": "delay queues",
    "leash": "exit with parent",
    "lifeline": "engine host",
    "mourn": "handle the exit",
    "parcel": "output file", "parcels": "output files",
    "rung": "retry delay", "rungs": "retry delays",
    "said": "payload, field, reply: what it is",
    "spool": "shared-memory directory",
    "stranger": "anonymous client, hostile input", "strangers": "anonymous clients, hostile input",
    "teller": "status reporter",
    "told": "sent, reported: what was done",
    "travelling": "propagated",
    "undeveloped": "pending",
    "untold": "skipped",
    "workshop": "worker, workers",
}  # fmt: skip
"""The word and its standard term (docs/glossary.md)."""

RELEASED = re.compile(
    r"""
    ["'`.]said\b | \bsaid\s*[:=](?!=) | \bsaid\ (?:jsonb|text)\b | \bkind,\ said\b  # a field of a dead letter's history
    | \brungs\b(?=\s*[:=`"',)\]]) | memory_rung\w*                # a field of image.done, metrics of the image engine
    | "bury\.                                                     # operations of the AsyncAPI document
    | --leash | _leash\b                                          # the old name of --exit-with-parent, for one release
    | /workshop\b                                                 # the old address of the page Workers, for one release
    """,
    re.VERBOSE,
)
"""Names that were released: they are left out before a line is checked."""

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
EXEMPT = frozenset(
    {"tests/support/vocabulary.py", "tests/unit/test_architecture.py", "docs/decisions/0010-standard-vocabulary-and-layout.md"}
)
"""Files that name the retired words on purpose."""


def find_retired_words(path: Path, text: str) -> Iterator[str]:
    """Each retired word of a file, in code, comments and strings alike, with its line and the standard term."""
    if path.as_posix() in EXEMPT:
        return
    for number, line in enumerate([path.as_posix(), *text.splitlines()]):
        for word in WORD.findall(RELEASED.sub(" ", line)):
            if word.lower() in RETIRED:
                yield f"line {number}: the word {word!r} is retired; say {RETIRED[word.lower()]!r} (docs/glossary.md)"
