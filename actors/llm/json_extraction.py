"""The JSON object in an answer, if there is one: as it stands, in a fence, or the first that opens and closes; lightly mended at last."""

import json
import re
from typing import Any

CODE_FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```\s*$", re.DOTALL)
COMMENT = re.compile(r"^\s*//.*$|/\*.*?\*/", re.MULTILINE | re.DOTALL)
TRAILING_COMMA = re.compile(r",(\s*[}\]])")
SMART_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})


def extract_json_object(text: str) -> dict[str, Any] | None:
    """A list or a bare number is not what was asked for."""
    bare = text.strip()
    fenced = CODE_FENCE.match(bare)
    candidates = [bare, *([fenced[1]] if fenced else []), *find_balanced_object(bare)]
    for candidate in [*candidates, *map(repair_json, candidates)]:
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def find_balanced_object(text: str) -> list[str]:
    """From the first brace to the one that closes it; braces inside strings do not count."""
    start = text.find("{")
    depth, inside, escaped = 0, False, False
    for at, letter in enumerate(text[start:] if start >= 0 else ""):
        if inside:
            inside, escaped = escaped or letter != '"', letter == "\\" and not escaped
        elif letter == '"':
            inside = True
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
            if not depth:
                return [text[start : start + at + 1]]
    return []


def repair_json(text: str) -> str:
    return TRAILING_COMMA.sub(r"\1", COMMENT.sub("", text.translate(SMART_QUOTES)))
