"""Tool calls in the text of an answer, in the form of Hermes and Qwen: what constrains them, and the reader that separates the parts.

A call is `<tool_call>\\n{"name": "…", "arguments": {…}}\\n</tool_call>`. Decoding is constrained to it as soon as a call begins. No string
in JSON holds a line break, so that the end of a call is found without reading its arguments.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from actors.engines.language.answer_text import undecided_chars
from actors.engines.language.grammar import rewrite_schema
from actors.engines.language.requests import FinishReason, GenerationRequest
from actors.engines.process.failures import describe_error
from bus.errors import PermanentError
from contracts.text import ToolCallDelta

CALL, CALL_END = "<tool_call>", "</tool_call>"
NAME_BEGIN, ARGUMENTS_BEGIN, ARGUMENTS_END = CALL + '\n{"name": "', '", "arguments": ', "}\n" + CALL_END
RESULT, RESULT_END = "<tool_response>", "</tool_response>"
THINK, THINK_END = "<think>", "</think>"
BLANKS = r"[ \t\r\n]*"
MARKERS = (CALL, CALL_END, RESULT, RESULT_END)
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
ID_CHARS = 24
MAX_CAUSE_CHARS = 300


def offered_tools(request: GenerationRequest) -> list[dict[str, Any]]:
    """The functions that the answer may call: name, description and parameters."""
    if request.tool_choice == "none" and request.tool_name is None:
        return []
    return [tool["function"] for tool in request.tools]


def forces_call(request: GenerationRequest) -> bool:
    """Whether the answer is a call and nothing else."""
    return bool(offered_tools(request)) and (request.tool_choice == "required" or request.tool_name is not None)


def left_out(request: GenerationRequest) -> tuple[str, ...]:
    """Parameters that all engines leave out: stop sequences would cut JSON, and a call that is required."""
    return ("stop",) if request.stop and (request.schema is not None or forces_call(request)) else ()


def stop_sequences(request: GenerationRequest) -> tuple[str, ...]:
    """Those that end the answer."""
    return () if left_out(request) else request.stop


def structural_tag(request: GenerationRequest, *, in_reasoning: bool, thinks: bool) -> str | None:
    """What constrains an answer to the offered tools, in the JSON of xgrammar; None when none is offered. Takes as long as a compilation,
    so that it is called in a thread. Raises PermanentError("schema-refused").

    With a schema beside the tools the answer is either JSON that satisfies it, or calls. `in_reasoning`: the prompt ends with the begin
    of the reasoning. `thinks`: the answer may begin with its own.
    """
    if not (tools := offered_tools(request)):
        return None
    once = not request.parallel_tool_calls
    named = [tool for tool in tools if request.tool_name in (None, tool["name"])]
    tags = [call_tag(tool) for tool in named]
    forced = {"type": "tags_with_separator", "tags": tags, "separator": "\n", "at_least_one": True}
    content: dict[str, Any]
    if request.tool_name is not None:
        content = tags[0]
    elif request.tool_choice == "required":
        content = forced | {"stop_after_first": once}
    elif request.schema is not None:
        content = {"type": "or", "elements": [schema_grammar(request.schema), forced | {"stop_after_first": once}]}
    else:
        free = {"type": "triggered_tags", "triggers": [CALL], "tags": tags, "stop_after_first": once}
        content = after_reasoning(free, in_reasoning=in_reasoning) if thinks or in_reasoning else free
    return json.dumps({"type": "structural_tag", "format": content})


def after_reasoning(content: dict[str, Any], *, in_reasoning: bool) -> dict[str, Any]:
    """The same behind a reasoning, in which no call begins. Blanks may stand before its begin, as `AnswerReader` reads it."""
    reasoning = {"type": "tag", "begin": "" if in_reasoning else THINK, "content": {"type": "any_text"}, "end": THINK_END}
    if in_reasoning:
        return {"type": "sequence", "elements": [reasoning, content]}
    own = {"type": "sequence", "elements": [{"type": "regex", "pattern": BLANKS}, reasoning]}
    return {"type": "sequence", "elements": [{"type": "optional", "content": own}, content]}


def call_tag(tool: dict[str, Any]) -> dict[str, Any]:
    """A call of one function."""
    begin = f"{NAME_BEGIN}{tool['name']}{ARGUMENTS_BEGIN}"
    return {"type": "tag", "begin": begin, "content": schema_grammar(arguments_schema(tool)), "end": ARGUMENTS_END}


def arguments_schema(tool: dict[str, Any]) -> dict[str, Any]:
    """The schema of the arguments, which are an object. Raises PermanentError("schema-refused")."""
    schema = tool.get("parameters") or NO_ARGUMENTS
    kind = schema.get("type", "object")
    if kind != "object":
        raise PermanentError("schema-refused", f"the parameters of the tool {tool['name']!r} must have the type object, not {kind!r:.100}")
    return schema if {"type", "$ref", "anyOf", "oneOf", "allOf"} & schema.keys() else schema | {"type": "object"}


def schema_grammar(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema as a grammar without free whitespace, which structural tags cannot ask for. Raises PermanentError("schema-refused")."""
    import xgrammar

    try:
        grammar = xgrammar.Grammar.from_json_schema(json.dumps(rewrite_schema(schema)), any_whitespace=False)
    except Exception as error:
        cause = describe_error(error, MAX_CAUSE_CHARS)
        raise PermanentError("schema-refused", f"the schema cannot constrain an answer: {cause}") from error
    return {"type": "grammar", "grammar": str(grammar)}


@dataclass(frozen=True)
class AnswerParts:
    """What a text adds to the answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.has_other)

    @property
    def has_other(self) -> bool:
        """Whether it holds something beside content."""
        return bool(self.reasoning or self.tool_calls)


Part = Literal["begin", "reasoning", "content", "name", "arguments"]


class AnswerReader:
    """Separates the text of one answer, which comes in pieces of any size, into content, reasoning and tool calls.

    `thinks`: the model may begin with its reasoning; `in_reasoning`: it has begun in the prompt. `seed`: the ids of calls follow from it
    and the request, so that a request that runs again has the same.
    """

    def __init__(self, request: GenerationRequest, *, thinks: bool, in_reasoning: bool, seed: int) -> None:
        self._offers_tools = bool(offered_tools(request))
        self._id_source = f"{seed} {len(request.messages)} {request.messages[-1:]}"
        self._part: Part = "reasoning" if in_reasoning else "begin" if thinks else "content"
        self._held = ""
        self._skips_blanks = self._part != "content"
        self._ended_calls = self._calls = 0

    def push(self, text: str, *, ends: bool = False) -> AnswerParts:
        """What can be decided with `text`; `ends`: nothing follows."""
        self._held += text
        content: list[str] = []
        reasoning: list[str] = []
        calls: list[ToolCallDelta] = []
        while (step := self._read_part(ends=ends)) is not None:
            part, released, done = step
            if part == "content":
                content.append(released)
            elif part == "reasoning":
                reasoning.append(released)
            elif part == "name" and done:
                calls.append(ToolCallDelta(index=self._calls - 1, id=self._call_id(self._calls - 1), name=released))
            elif part == "arguments" and released:
                calls.append(ToolCallDelta(index=self._calls - 1, arguments=released))
            if not done:
                break
        return AnswerParts("".join(content), "".join(reasoning), tuple(calls))

    def finish_reason(self, reason: FinishReason) -> FinishReason:
        """`tool_calls` for an answer that ends by itself and holds whole calls."""
        return "tool_calls" if reason == "stop" and self._calls and self._ended_calls == self._calls else reason

    def _read_part(self, *, ends: bool) -> tuple[Part, str, bool] | None:
        """The current part, what can be released of it, and whether another part follows. None: nothing can be decided."""
        if self._skips_blanks:
            self._held = self._held.lstrip()
            self._skips_blanks = not self._held
        part = self._part
        if part == "begin":
            if not ends and THINK.startswith(self._held[: len(THINK)]) and len(self._held) < len(THINK):
                return None
            thinks = self._held.startswith(THINK)
            self._held = self._held[len(THINK) :] if thinks else self._held
            self._part, self._skips_blanks = ("reasoning", True) if thinks else ("content", False)
            return part, "", True
        end = self._part_end()
        place = self._held.find(end) if end else -1
        if place >= 0:
            released, self._held = self._held[:place], self._held[place + len(end) :]
            self._begin_next(part)
            return part, released, True
        size = len(self._held) if ends else len(self._held) - undecided_chars(self._held, (end,) if end else ())
        if part == "name":
            return None  # it comes whole
        released, self._held = self._held[:size], self._held[size:]
        return part, released, False

    def _part_end(self) -> str:
        """The text behind the current part; empty: it goes to the end of the answer."""
        ends = {"reasoning": THINK_END, "content": NAME_BEGIN if self._offers_tools else "", "name": ARGUMENTS_BEGIN}
        return ends.get(self._part, ARGUMENTS_END)

    def _begin_next(self, part: Part) -> None:
        following: dict[Part, Part] = {"reasoning": "content", "content": "name", "name": "arguments", "arguments": "content"}
        self._part = following[part]
        self._skips_blanks = self._part == "content"
        self._calls += self._part == "name"
        self._ended_calls += part == "arguments"

    def _call_id(self, index: int) -> str:
        digest = hashlib.blake2b(f"{self._id_source} {index}".encode(errors="surrogatepass"), digest_size=ID_CHARS // 2)
        return f"call_{digest.hexdigest()}"
