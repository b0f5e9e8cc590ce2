"""The output of a response: which events its deltas become, and which items they make up. Pure.

A run that begins again after a crash writes its text anew: what was stored before is not sent twice, and must be the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from bus.errors import PermanentError
from bus.json_text import storable_text
from contracts.responses import Item, ItemPart, ItemStatus, token_fields
from contracts.text import TextDelta, TokenLogprob, ToolCallDelta

Event = dict[str, Any]
Kind = Literal["reasoning", "message", "function_call"]
ID_PREFIXES: dict[Kind, str] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
DELTA_TYPES: dict[Kind, str] = {
    "reasoning": "response.reasoning_text.delta",
    "message": "response.output_text.delta",
    "function_call": "response.function_call_arguments.delta",
}
KINDS_BY_DELTA_TYPE = {event_type: kind for kind, event_type in DELTA_TYPES.items()}
"""The stored events from which the output is read again."""


@dataclass
class Segment:
    """One item while it is written. `text`: of a function call its arguments; `call`: its number among the calls."""

    kind: Kind
    text: str = ""
    name: str = ""
    call_id: str = ""
    call: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    is_done: bool = False


class OutputStream:
    """Collects deltas, and returns the events that have not been returned yet, without their sequence numbers."""

    def __init__(self, response_id: str, stored_events: Iterable[Event] = ()) -> None:
        self._response_id = response_id
        self._segments: list[Segment] = []
        self._sent: list[Segment] = restore_segments(stored_events)
        self._held_logprobs: list[TokenLogprob] = []

    def add(self, delta: TextDelta) -> None:
        if delta.reasoning:
            self._open("reasoning").text += storable_text(delta.reasoning)
        self._add_text(delta)
        for part in delta.tool_calls:
            self._add_call(part)

    def _add_text(self, delta: TextDelta) -> None:
        """Only messages have log probabilities. Those without any output yet, as of half a character, wait for the text that follows."""
        if delta.delta:
            segment = self._open("message")
            segment.text += storable_text(delta.delta)
            segment.logprobs += self._held_logprobs + delta.logprobs
            self._held_logprobs = []
        elif delta.reasoning or delta.tool_calls:
            self._held_logprobs = []
        elif self._segments and self._segments[-1].kind == "message":
            self._segments[-1].logprobs += delta.logprobs
        else:
            self._held_logprobs += delta.logprobs

    def _open(self, kind: Kind) -> Segment:
        """The last segment, or a new one when it is of another kind."""
        if not self._segments or self._segments[-1].kind != kind:
            self._segments.append(Segment(kind))
        return self._segments[-1]

    def _add_call(self, part: ToolCallDelta) -> None:
        """Servers may send the arguments of several calls in turns."""
        segment = next((one for one in self._segments if one.call == part.index), None)
        if segment is None:
            segment = Segment("function_call", call=part.index)
            self._segments.append(segment)
        segment.name, segment.call_id = segment.name or part.name or "", segment.call_id or part.id or ""
        segment.text += storable_text(part.arguments)

    def take_events(self, end: ItemStatus | None = None) -> list[Event]:
        """The events of what was added. `end`: nothing follows, and the last item ends with this status.

        A function call is open until then, because its arguments may go on after another item has begun.
        Raises PermanentError("answer-changed") when this run has written something else than an earlier one.
        """
        events: list[Event] = []
        for index, segment in enumerate(self._segments):
            is_last = index == len(self._segments) - 1
            is_closed = end is not None or not (is_last or segment.kind == "function_call")
            status: ItemStatus | None = "completed" if is_closed else None
            events += self._advance(index, segment, end if is_last else status)
        if end and len(self._sent) > len(self._segments):
            raise answer_changed()
        return events

    def _advance(self, index: int, segment: Segment, end: ItemStatus | None) -> list[Event]:
        events: list[Event] = []
        if index == len(self._sent):
            self._sent.append(Segment(segment.kind, name=segment.name, call_id=segment.call_id or f"call_{self._item_id(index, segment)}"))
            events += self._opening_events(index)
        sent = self._sent[index]
        check_continuation(sent, segment, closes=end is not None)
        text, logprobs = segment.text[len(sent.text) :], segment.logprobs[len(sent.logprobs) :]
        if text or logprobs:
            sent.text += text
            sent.logprobs += logprobs
            events.append(self._delta_event(index, text, logprobs))
        if end and not sent.is_done:
            sent.is_done = True
            events += self._closing_events(index, end)
        return events

    def _item_id(self, index: int, segment: Segment) -> str:
        """The same in every run."""
        return f"{ID_PREFIXES[segment.kind]}_{self._response_id.removeprefix('resp_')}{index:02x}"

    def _opening_events(self, index: int) -> list[Event]:
        segment, place = self._sent[index], self._place(index)
        added = {"type": "response.output_item.added", "output_index": index, "item": self.item(index, "in_progress").to_openai()}
        if segment.kind == "function_call":
            return [added]
        return [added, place | {"type": "response.content_part.added", "part": part_fields(segment)}]

    def _delta_event(self, index: int, text: str, logprobs: list[TokenLogprob]) -> Event:
        kind = self._sent[index].kind
        extra = {"logprobs": [token_fields(token) for token in logprobs]} if kind == "message" else {}
        return self._place(index) | {"type": DELTA_TYPES[kind], "delta": text} | extra

    def _closing_events(self, index: int, status: ItemStatus) -> list[Event]:
        segment, place = self._sent[index], self._place(index)
        done = {"type": "response.output_item.done", "output_index": index, "item": self.item(index, status).to_openai()}
        match segment.kind:
            case "function_call":
                arguments = {"type": "response.function_call_arguments.done", "name": segment.name, "arguments": segment.text}
                return [place | arguments, done]
            case "reasoning":
                text_done: Event = {"type": "response.reasoning_text.done", "text": segment.text}
            case _:
                text_done = {"type": "response.output_text.done", "text": segment.text} | {"logprobs": part_fields(segment)["logprobs"]}
        part = {"type": "response.content_part.done", "part": part_fields(segment)}
        return [place | text_done, place | part, done]

    def _place(self, index: int) -> Event:
        segment = self._sent[index]
        content = {} if segment.kind == "function_call" else {"content_index": 0}
        return {"item_id": self._item_id(index, segment), "output_index": index} | content

    def item(self, index: int, status: ItemStatus) -> Item:
        """An item as far as it was sent. While it is in progress it is empty, as clients expect it."""
        segment = self._sent[index]
        common: dict[str, Any] = {"id": self._item_id(index, segment), "type": segment.kind, "status": status}
        text = "" if status == "in_progress" else segment.text
        match segment.kind:
            case "function_call":
                return Item(**common, call_id=segment.call_id, name=segment.name, arguments=text)
            case "reasoning":
                return Item(**common, thoughts=[text] if text else [])
            case _:
                parts = [ItemPart(type="output_text", text=text, logprobs=segment.logprobs)] if status != "in_progress" else []
                return Item(**common, role="assistant", content=parts)

    def items(self, end: ItemStatus) -> list[Item]:
        """All items as far as they were sent, the last one with the status `end`."""
        last = len(self._sent) - 1
        return [self.item(index, end if index == last else "completed") for index in range(len(self._sent))]


def check_continuation(sent: Segment, segment: Segment, *, closes: bool) -> None:
    """Raises PermanentError("answer-changed") unless the segment begins as what was sent of it."""
    shared = min(len(sent.text), len(segment.text))
    is_shorter = len(segment.text) < len(sent.text)
    if (
        sent.kind != segment.kind
        or sent.name != segment.name
        or sent.text[:shared] != segment.text[:shared]
        or (closes and is_shorter)
        or (sent.is_done and len(segment.text) > len(sent.text))
    ):
        raise answer_changed()


def answer_changed() -> PermanentError:
    return PermanentError(
        "answer-changed", "the model was restarted, and would not continue the answer that it had begun; create the response again"
    )


def part_fields(segment: Segment) -> Event:
    if segment.kind == "reasoning":
        return {"type": "reasoning_text", "text": segment.text}
    return ItemPart(type="output_text", text=segment.text, logprobs=segment.logprobs).to_openai()


def restore_segments(events: Iterable[Event]) -> list[Segment]:
    """The segments that stored events made up."""
    segments: list[Segment] = []
    for event in events:
        event_type = event["type"]
        if event_type == "response.output_item.added":
            item = event["item"]
            segments.append(Segment(item["type"], name=item.get("name", ""), call_id=item.get("call_id", "")))
        elif event_type in KINDS_BY_DELTA_TYPE:
            segment = segments[event["output_index"]]
            segment.text += event["delta"]
            segment.logprobs += [restore_token(fields) for fields in event.get("logprobs", ())]
        elif event_type == "response.output_item.done":
            segments[event["output_index"]].is_done = True
    return segments


def restore_token(fields: dict[str, Any]) -> TokenLogprob:
    top = [{"text": one["token"], "logprob": one["logprob"], "bytes": one["bytes"]} for one in fields["top_logprobs"]]
    return TokenLogprob.model_validate({"text": fields["token"], "logprob": fields["logprob"], "bytes": fields["bytes"], "top": top})
