"""Finds the JSON object in an answer: the whole text, a code fence, or the first balanced object; then the same with small repairs."""

import json
import re
from typing import Any

CODE_FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```\s*$", re.DOTALL)
COMMENT = re.compile(r"^\s*//.*$|/\*.*?\*/", re.MULTILINE | re.DOTALL)
TRAILING_COMMA = re.compile(r",(\s*[}\]])")
SMART_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})


def extract_json_object(text: str) -> dict[str, Any] | None:
    """None when there is no object; a list or a number is not accepted."""
    bare = text.strip()
    fenced = CODE_FENCE.match(bare)
    candidates = [bare, *([fenced[1]] if fenced else []), *find_balanced_object(bare)]
    for candidate in [*candidates, *map(repair_json, candidates)]:
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return None


def find_balanced_object(text: str) -> list[str]:
    """From the first brace to its closing one, as a list of one, or an empty list. Braces inside strings do not count."""
    start = text.find("{")
    depth, in_string, escaped = 0, False, False
    for offset, char in enumerate(text[start:] if start >= 0 else ""):
        if in_string:
            in_string, escaped = escaped or char != '"', char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "{}":
            depth += 1 if char == "{" else -1
            if not depth:
                return [text[start : start + offset + 1]]
    return []


def repair_json(text: str) -> str:
    return TRAILING_COMMA.sub(r"\1", COMMENT.sub("", text.translate(SMART_QUOTES)))
