"""Finds the JSON object in an answer: the whole text, a code fence, or the first balanced object; then the same with small repairs."""

import json
import re
from typing import Any

FENCE = "```"
FENCE_START = re.compile(r"```\w*\s*\n")
LINE_COMMENT = re.compile(r"^[ \t]*//.*$", re.MULTILINE)
TRAILING_COMMA = re.compile(r",(\s*[}\]])")
MAX_ANSWER_CHARS = 1 << 18
"""More than any model answers; the rest of a text is not searched."""
SMART_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})


def extract_json_object(text: str) -> dict[str, Any] | None:
    """None when there is no object; a list or a number is not accepted."""
    bare = text.strip()[:MAX_ANSWER_CHARS]
    candidates = [bare, *find_fenced_text(bare), *find_balanced_object(bare)]
    for candidate in [*candidates, *map(repair_json, candidates)]:
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return None


def find_fenced_text(text: str) -> list[str]:
    """The inside of a text that is one code fence as a whole, as a list of one, or an empty list."""
    start = FENCE_START.match(text)
    if not start or not text.endswith(FENCE):
        return []
    return [text[start.end() : -len(FENCE)].removesuffix("\n")]


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
    return TRAILING_COMMA.sub(r"\1", LINE_COMMENT.sub("", remove_block_comments(text.translate(SMART_QUOTES))))


def remove_block_comments(text: str) -> str:
    kept, start = [], 0
    while (begin := text.find("/*", start)) >= 0 and (end := text.find("*/", begin + 2)) >= 0:
        kept.append(text[start:begin])
        start = end + 2
    return "".join(kept) + text[start:]
