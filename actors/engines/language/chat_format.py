"""Writes the prompt of a request with the model's chat template: messages, tools and their results, and how much the model shall reason.

A template of Hermes or Qwen gets tools, calls and results in its own fields. For others they are written into the messages: the
instruction into the system message, calls into the assistant's text, results into the user's.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from actors.engines.language.control_words import ControlWords
from actors.engines.language.requests import GenerationRequest
from actors.engines.language.tool_calls import (
    ARGUMENTS_BEGIN,
    ARGUMENTS_END,
    CALL,
    CALL_END,
    MARKERS,
    NAME_BEGIN,
    RESULT,
    RESULT_END,
    THINK,
    THINK_END,
    forces_call,
    offered_tools,
)
from actors.engines.process.failures import describe_error
from bus.errors import PermanentError

MAX_CAUSE_CHARS = 300
TOOL_WORDS = ("tools", "tool_calls", CALL, RESULT)
"""A template that has all of them writes tools, calls and results as Hermes and Qwen do."""
XML_CALLS = "<function="
"""Of templates that write calls with the same tags and in another form."""
EFFORT_VARIABLES = ("reasoning_effort", "enable_thinking")
CLOSED_REASONING = f"\n{THINK_END}\n\n"
INSTRUCTION = f"""# Tools

You may call functions to help the user. Their signatures are:
<tools>
{{tools}}
</tools>

To call a function, write its name and its arguments as JSON, and nothing behind:
{CALL}
{{{{"name": <function-name>, "arguments": <arguments-object>}}}}
{CALL_END}"""


@dataclass(frozen=True)
class RenderedPrompt:
    """`ids`: the tokens. `in_reasoning`: the prompt ends with the begin of the model's reasoning."""

    ids: list[int]
    in_reasoning: bool = False


@dataclass(frozen=True)
class ChatFormat:
    """What a chat template knows. `tools`: the fields of tools, calls and results. `thinks`: answers may begin with a reasoning.
    `system`: a message of this role. `effort_variable`: what it reads of the reasoning effort.
    """

    tools: bool = False
    thinks: bool = False
    system: bool = True
    effort_variable: str | None = None

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> "ChatFormat":
        template = tokenizer.chat_template or ""
        text = template if isinstance(template, str) else "\n".join(template.values())
        return cls(
            tools=all(word in text for word in TOOL_WORDS) and XML_CALLS not in text,
            thinks=THINK in text and THINK_END in text,
            system="System role not supported" not in text,
            effort_variable=next((name for name in EFFORT_VARIABLES if name in text), None),
        )

    def render(self, tokenizer: Any, request: GenerationRequest, words: ControlWords, model: str) -> RenderedPrompt:
        """The prompt of a request whose texts may hold control words, which are removed: see `clean` and `render_clean`."""
        return self.render_clean(tokenizer, self.clean(request, words, model), model)

    def clean(self, request: GenerationRequest, words: ControlWords, model: str) -> GenerationRequest:
        """The request without control words in any text. Raises PermanentError("vision-unsupported" · "prompt-unreadable")."""
        if any(not isinstance(message["content"], str) for message in request.messages):
            raise PermanentError("vision-unsupported", f"{model} reads no images: name a vision model, or send text only")
        uses_tools = bool(request.tools) or any(message.get("tool_calls") or message["role"] == "tool" for message in request.messages)
        words = with_markers(words) if uses_tools else words
        try:
            return replace(
                request,
                messages=[clean_message(message, words) for message in request.messages],
                tools=tuple(clean_json(tool, words) for tool in request.tools),
                prompt=None if request.prompt is None else words.remove_from(request.prompt),
            )  # fmt: skip
        except RecursionError as error:
            raise PermanentError("prompt-unreadable", "the tools, or the arguments of a tool call, are nested too deeply") from error

    def render_clean(self, tokenizer: Any, request: GenerationRequest, model: str) -> RenderedPrompt:
        """Raises PermanentError("prompt-unreadable"), and ("parameter-unsupported") for an effort that the template does not read.

        A constrained answer begins at once: a reasoning that the template begins is ended before.
        """
        if request.prompt is not None:
            return RenderedPrompt(list(tokenizer.encode(request.prompt)))
        variables = self._effort(request, model)
        tools = offered_tools(request)
        messages = [self._native(message) for message in request.messages] if self.tools else self._plain(request.messages, tools)
        try:
            text = tokenizer.apply_chat_template(
                messages,
                tools=[{"type": "function", "function": tool} for tool in tools] if tools and self.tools else None,
                add_generation_prompt=True,
                tokenize=False,
                **variables,
            )
            in_reasoning = self.thinks and text.rstrip().endswith(THINK)
            if in_reasoning and (request.schema is not None or forces_call(request)):
                text, in_reasoning = text.rstrip() + CLOSED_REASONING, False
            return RenderedPrompt(list(tokenizer.encode(text, add_special_tokens=False)), in_reasoning)
        except Exception as error:
            cause = describe_error(error, MAX_CAUSE_CHARS)
            raise PermanentError("prompt-unreadable", f"the model's chat template rejects the messages: {cause}") from error

    def _effort(self, request: GenerationRequest, model: str) -> dict[str, Any]:
        if request.reasoning_effort is None:
            return {}
        if self.effort_variable is None:
            cause = f"reasoning_effort is not supported: the chat template of {model} does not read it; leave it out"
            raise PermanentError("parameter-unsupported", cause)
        effort = request.reasoning_effort
        return {self.effort_variable: effort != "none" if self.effort_variable == "enable_thinking" else effort}

    def _native(self, message: dict[str, Any]) -> dict[str, Any]:
        """Arguments as an object, which templates write as JSON."""
        if not message.get("tool_calls"):
            return message
        calls = [
            call | {"function": call["function"] | {"arguments": read_arguments(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
        return message | {"tool_calls": calls}

    def _plain(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages with roles and contents only."""
        plain: list[dict[str, Any]] = []
        for message in messages:
            is_result = message["role"] == "tool"
            if is_result and plain and plain[-1].get("is_result"):
                plain[-1]["content"] += "\n" + write_result(message)
            elif is_result:
                plain.append({"role": "user", "content": write_result(message), "is_result": True})
            else:
                reasoning = {"reasoning_content": message["reasoning_content"]} if message.get("reasoning_content") else {}
                plain.append({"role": message["role"], "content": write_calls(message)} | reasoning)
        return self._with_instruction([{k: v for k, v in message.items() if k != "is_result"} for message in plain], tools)

    def _with_instruction(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not tools:
            return messages
        instruction = INSTRUCTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        role = "system" if self.system else "user"
        if messages and messages[0]["role"] == role:
            return [messages[0] | {"content": f"{messages[0]['content']}\n\n{instruction}"}, *messages[1:]]
        return [{"role": role, "content": instruction}, *messages]


def texts_of(request: GenerationRequest) -> list[str]:
    """The texts that a prompt is made of."""
    if request.prompt is not None:
        return [request.prompt]
    return [text for part in (request.messages, request.tools) for text in strings_in(part)]


def strings_in(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from strings_in(key)
            yield from strings_in(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from strings_in(entry)


def clean_message(message: dict[str, Any], words: ControlWords) -> dict[str, Any]:
    """The message without control words, also those that the JSON of arguments writes with escapes."""
    clean = {key: value if key == "role" else clean_json(value, words) for key, value in message.items()}
    if not clean.get("tool_calls"):
        return clean
    calls = [
        call | {"function": call["function"] | {"arguments": clean_arguments(call["function"]["arguments"], words)}}
        for call in clean["tool_calls"]
    ]
    return clean | {"tool_calls": calls}


def clean_arguments(text: str, words: ControlWords) -> str:
    """Arguments, which have no control words as a text, without those in the texts and keys of their JSON."""
    value = read_arguments(text)
    if not isinstance(value, dict):
        return text
    clean = json.dumps(clean_json(value, words), ensure_ascii=False)
    return clean.encode(errors="backslashreplace").decode()  # half a character stays the escape that it was


def clean_json(value: Any, words: ControlWords) -> Any:
    """The value without control words in its texts and keys."""
    if isinstance(value, str):
        return words.remove_from(value)
    if isinstance(value, dict):
        return {words.remove_from(key): clean_json(entry, words) for key, entry in value.items()}
    return [clean_json(entry, words) for entry in value] if isinstance(value, (list, tuple)) else value


@lru_cache(maxsize=4)
def with_markers(words: ControlWords) -> ControlWords:
    """The control words of a chat with tools."""
    return ControlWords(tuple(sorted({*words.words, *MARKERS})))


def read_arguments(text: str) -> Any:
    """The object, or the text when it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def write_result(message: dict[str, Any]) -> str:
    return f"{RESULT}\n{message['content']}\n{RESULT_END}"


def write_calls(message: dict[str, Any]) -> str:
    """The content of a message, with its calls behind it."""
    calls = [
        f"{NAME_BEGIN}{call['function']['name']}{ARGUMENTS_BEGIN}{call['function']['arguments']}{ARGUMENTS_END}"
        for call in message.get("tool_calls") or ()
    ]
    return "\n".join([*([message["content"]] if message["content"] or not calls else []), *calls])
