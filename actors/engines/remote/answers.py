"""What a completion says, whole or in the chunks of a stream: its text, its reasoning, why it ended, its token counts.

Servers differ in all of these; what they leave out or spell in another way is read all the same.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from actors.engines.language.requests import VisionFinishReason

CUT_REASONS = frozenset({
    *("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "token_limit", "incomplete"),
    *("abort", "aborted", "cancelled", "canceled", "timeout", "insufficient_system_resource"),
})  # fmt: skip
"""The answer is not complete: it reached a limit, or the server gave it up."""
FILTER_REASONS = frozenset({
    *("content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content", "spii", "sensitive", "refusal"),
    "guardrail_intervened",
})  # fmt: skip
FAILURE_REASONS = frozenset({"error", "network_error"})
REASONING_TYPES = frozenset({"thinking", "reasoning", "redacted_thinking"})
"""Parts of a content that are no part of the answer."""
REASONING_MEMBERS = ("reasoning_content", "reasoning", "thinking")
"""Of a message; servers that send two of them send the same text twice."""
MAX_PARTS, MAX_DEPTH = 10_000, 4
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TokenCounts:
    """0: the server does not report it. `cached`: of the prompt; `reasoning`: of the completion."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0


def content_text(content: Any, depth: int = 0) -> str:
    """The text of a content in any form: a text, null, one part, or a list of parts; reasoning is left out."""
    match content:
        case str():
            return content
        case list() if depth < MAX_DEPTH:
            return "".join(content_text(part, depth + 1) for part in content[:MAX_PARTS])
        case dict() if content.get("type") not in REASONING_TYPES:
            named = next((content[name] for name in ("text", "refusal", "value", "content") if content.get(name)), None)
            return content_text(named, depth + 1) if depth <= MAX_DEPTH else ""
    return ""


def message_text(message: Any) -> str:
    """The text of a message or of a delta; of a refusal, where it has nothing else."""
    if not isinstance(message, dict):
        return ""
    return content_text(message.get("content")) or content_text(message.get("refusal"))


def reasoning_text(message: Any) -> str:
    """What the model thought before its answer, in a field of the message or of the delta, or in parts of its content."""
    if not isinstance(message, dict):
        return ""
    text = next((text for name in REASONING_MEMBERS if (text := content_text(message.get(name)))), "")
    parts = message.get("content")
    if text or not isinstance(parts, list):
        return text
    thoughts = (part for part in parts[:MAX_PARTS] if isinstance(part, dict) and part.get("type") in REASONING_TYPES)
    return "".join(content_text(part.get("thinking") or part.get("reasoning") or part.get("text")) for part in thoughts)


def choice_text(choice: dict[str, Any]) -> str:
    """The text of a whole choice. Raises TypeError for one without a message."""
    message = choice.get("message") or choice.get("delta")
    if isinstance(message, dict):
        return message_text(message)
    if isinstance(text := choice.get("text"), str):
        return text
    raise TypeError("the choice has no message")


def first_choices(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The choices of the first answer; no other one is ever requested."""
    for choice in event.get("choices") or ():
        if isinstance(choice, dict) and str(choice.get("index") or 0) == "0":
            yield choice


def first_choice(completion: dict[str, Any]) -> dict[str, Any]:
    """Raises LookupError for a completion without one."""
    choice = next(first_choices(completion), None)
    if choice is None:
        raise LookupError("the completion has no choice")
    return choice


def finish_reason(choice: dict[str, Any]) -> VisionFinishReason:
    """Why the answer ended; "stop" for a reason that is not known, such as `eos`, and for none. Raises ValueError for a failure."""
    message = choice.get("message") or choice.get("delta")
    reason = str(choice.get("finish_reason") or choice.get("finishReason") or "").lower()
    if reason in FAILURE_REASONS:
        raise ValueError(f"the answer ended with {reason}")
    if reason in FILTER_REASONS or (isinstance(message, dict) and message.get("refusal")):
        return "content_filter"
    return "length" if reason in CUT_REASONS else "stop"


def ends_answer(choice: dict[str, Any]) -> bool:
    return bool(choice.get("finish_reason") or choice.get("finishReason"))


def token_counts(body: dict[str, Any], counted: int = 0) -> TokenCounts:
    """Of a completion or a chunk; `counted`: the completion's tokens where it does not say."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        usage = next((choice["usage"] for choice in first_choices(body) if isinstance(choice.get("usage"), dict)), {})
    completion = to_count(usage.get("completion_tokens", usage.get("output_tokens")))
    prompt = to_count(usage.get("prompt_tokens", usage.get("input_tokens")))
    cached = detail_count(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    reasoning = detail_count(usage, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens")
    return TokenCounts(prompt, completion or counted, cached or to_count(usage.get("prompt_cache_hit_tokens")), reasoning)


def detail_count(usage: dict[str, Any], groups: tuple[str, ...], name: str) -> int:
    return next((to_count(usage[group].get(name)) for group in groups if isinstance(usage.get(group), dict)), 0)


def to_count(value: Any) -> int:
    """A number of tokens, also written as a text; 0 for anything else."""
    try:
        return max(0, int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return 0


def repair_surrogates(text: str) -> str:
    """The two halves of a character as one; a lone half as U+FFFD, the replacement character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if SURROGATE.search(text) else text


class SurrogateJoiner:
    """Joins the two halves of a character that a server sends in two chunks."""

    def __init__(self) -> None:
        self._half = ""

    def push(self, text: str) -> str:
        """The text with what was held back before; a first half at its end is held back."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return repair_surrogates(text)

    def end(self) -> str:
        """What is still held back: U+FFFD for a half, else nothing."""
        half, self._half = self._half, ""
        return repair_surrogates(half)
