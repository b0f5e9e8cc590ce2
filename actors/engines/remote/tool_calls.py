"""Tool calls in the answers of model servers, whole or in fragments.

Servers differ: some number the calls and some do not, send the id in every fragment or none at all, a call in one piece, its arguments as
an object, or one call in the field `function_call`. Arguments that are no JSON are passed on as they came.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from actors.engines.remote.answers import SurrogateJoiner, repair_surrogates
from contracts.text import ToolCallDelta

MAX_CALLS, MAX_ARGUMENT_CHARS, MAX_NAME_CHARS = 128, 1 << 20, 256
"""Of one answer, of all its arguments together, and of a name or an id."""


@dataclass(eq=False)
class OpenCall:
    """A call whose arguments may go on. `number`: the server's own; None: it does not number calls. `name` is empty until it arrives."""

    index: int
    number: int | None
    id: str
    name: str = ""
    is_begun: bool = False
    arguments: list[str] = field(default_factory=list)
    joiner: SurrogateJoiner = field(default_factory=SurrogateJoiner)

    def is_complete(self) -> bool:
        text = "".join(self.arguments)
        try:
            return text.rstrip().endswith("}") and bool(text) and json.loads(text) is not None
        except (ValueError, RecursionError):
            return False


class ToolCallReader:
    """Puts the calls of one answer together, and numbers them in the order in which they began.

    Raises ValueError for more calls or arguments than an answer may have, and for a call without a name.
    """

    def __init__(self, max_calls: int = MAX_CALLS) -> None:
        """`max_calls`: 1: further ones are left out, because not every server knows `parallel_tool_calls`; 0: none is read."""
        self._calls: list[OpenCall] = []
        self._max_calls, self._chars, self._checks_left = max_calls, 0, MAX_CALLS

    def __bool__(self) -> bool:
        return bool(self._calls)

    def push(self, message: Any) -> tuple[ToolCallDelta, ...]:
        """The parts in a message or a delta."""
        if not self._max_calls:
            return ()
        parts = [self._read(fragment) for fragment in fragments_of(message)]
        return tuple(part for part in parts if part is not None)

    def end(self) -> tuple[ToolCallDelta, ...]:
        """What was held back: half a character, and the empty object of a call without arguments."""
        if nameless := next((call for call in self._calls if not call.name), None):
            raise ValueError(f"tool call {nameless.index} has no name")
        rests = [(call, call.joiner.end() or ("" if "".join(call.arguments).strip() else "{}")) for call in self._offered()]
        return tuple(ToolCallDelta(index=call.index, arguments=rest) for call, rest in rests if rest)

    def _offered(self) -> list[OpenCall]:
        return self._calls[: self._max_calls]

    def _read(self, fragment: dict[str, Any]) -> ToolCallDelta | None:
        function = fragment.get("function")
        function = function if isinstance(function, dict) else fragment
        name, arguments = text_of(function.get("name")), arguments_text(function.get("arguments"))
        call = self._call_of(fragment, name, arguments)
        if call is None:
            return None
        self._chars += len(arguments)
        if len(name) > MAX_NAME_CHARS or self._chars > MAX_ARGUMENT_CHARS:
            raise ValueError(f"tool calls with more than {MAX_NAME_CHARS} characters of name or {MAX_ARGUMENT_CHARS} of arguments")
        call.name = call.name or name
        call.arguments.append(arguments)
        if not call.name or call not in self._offered():
            return None
        new = call.joiner.push(arguments if call.is_begun else "".join(call.arguments))
        begins, call.is_begun = not call.is_begun, True
        if not begins and not new:
            return None
        return ToolCallDelta(index=call.index, id=call.id if begins else None, name=call.name if begins else None, arguments=new)

    def _call_of(self, fragment: dict[str, Any], name: str, arguments: str) -> OpenCall | None:
        """The call that a fragment continues, or a new one; None: it has nothing that a call could begin with."""
        number, call_id = fragment.get("index"), text_of(fragment.get("id"))
        number = number if isinstance(number, int) else None
        last = next((call for call in reversed(self._calls) if number is None or call.number == number), None)
        if last is not None and not self._begins_another(last, number, call_id, name, arguments):
            return last
        if not (name or call_id or arguments):
            return None
        if len(self._calls) == MAX_CALLS:
            raise ValueError(f"more than {MAX_CALLS} tool calls")
        own_id = call_id if 0 < len(call_id) <= MAX_NAME_CHARS else f"call_{uuid4().hex[:24]}"
        self._calls.append(OpenCall(len(self._calls), number, own_id))
        return self._calls[-1]

    def _begins_another(self, last: OpenCall, number: int | None, call_id: str, name: str, arguments: str) -> bool:
        """Whether a named fragment is another call than `last`: servers that number no calls, or all of them 0, send each with its name.

        A server that repeats the name in every fragment repeats the id, too, or leaves it out. Whether the arguments before are complete
        is looked at as often as there may be calls.
        """
        if not name or not last.name:
            return False
        if call_id:
            return call_id != last.id
        if number is None or not arguments or not self._checks_left:
            return number is None
        self._checks_left -= 1
        return last.is_complete()


def fragments_of(message: Any) -> Iterator[dict[str, Any]]:
    """The tool calls of a message or a delta. Raises TypeError for a list that is none."""
    if not isinstance(message, dict):
        return
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise TypeError("tool_calls is no list")
    yield from (call for call in calls if isinstance(call, dict))
    if not calls and isinstance(call := message.get("function_call"), dict) and (call.get("name") or call.get("arguments")):
        yield {"index": 0, "function": call}


def arguments_text(arguments: Any) -> str:
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else repair_surrogates(json.dumps(arguments, ensure_ascii=False))


def text_of(value: Any) -> str:
    return repair_surrogates(value) if isinstance(value, str) else ""
