"""One answer while it is generated, and the deltas in which the answers of a request are sent to its caller."""

import asyncio
from dataclasses import dataclass, field

from actors.engines.language.requests import GenerationChunk
from bus.actor import SendDelta
from contracts.text import Answer, TextDelta, TokenLogprob, ToolCall, ToolCallDelta


@dataclass
class CallParts:
    """A tool call that arrives in parts."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def add(self, part: ToolCallDelta) -> None:
        self.id = self.id or part.id or ""
        self.name = self.name or part.name or ""
        self.arguments.append(part.arguments)


class DeltaSender:
    """Sends chunks as deltas, which it numbers from 0, whichever answer they belong to. `count`: those sent so far."""

    def __init__(self, send: SendDelta | None) -> None:
        self._send, self._lock, self.count = send, asyncio.Lock(), 0

    async def send(self, chunk: GenerationChunk, choice: int) -> bool:
        """Whether there was something to send."""
        if self._send is None or not (chunk.text or chunk.reasoning or chunk.tool_calls or chunk.logprobs):
            return False
        async with self._lock:
            delta = TextDelta(
                sequence=self.count, delta=chunk.text, tokens=chunk.completion_tokens, choice=choice,
                reasoning=chunk.reasoning, tool_calls=list(chunk.tool_calls), logprobs=list(chunk.logprobs),
            )  # fmt: skip
            self.count += 1
            await self._send(delta)
        return True


@dataclass
class GenerationRun:
    """The state of one answer. `choice`: its number among those of the request. Times are those of `time.perf_counter`.

    `was_sent`: a part of it was sent to the caller, so that it cannot be generated once more.
    """

    choice: int = 0
    deltas: DeltaSender = field(default_factory=lambda: DeltaSender(None))
    submitted_at: float = 0.0
    first_token_at: float | None = None
    finished_at: float = 0.0
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: dict[int, CallParts] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    was_sent: bool = False
    last_chunk: GenerationChunk = field(default_factory=lambda: GenerationChunk("", 0))

    @property
    def response(self) -> str:
        return "".join(self.texts)

    @property
    def tool_calls(self) -> list[ToolCall]:
        ordered = (self.calls[index] for index in sorted(self.calls))
        return [ToolCall(id=call.id, name=call.name, arguments="".join(call.arguments)) for call in ordered]

    async def add(self, chunk: GenerationChunk) -> None:
        """Collect a chunk, and send it."""
        self.texts.append(chunk.text)
        self.thoughts.append(chunk.reasoning)
        self.logprobs.extend(chunk.logprobs)
        for part in chunk.tool_calls:
            self.calls.setdefault(part.index, CallParts()).add(part)
        self.last_chunk = chunk
        self.was_sent = await self.deltas.send(chunk, self.choice) or self.was_sent

    def clear(self) -> None:
        """Forget an answer that is generated once more."""
        for parts in (self.texts, self.thoughts, self.calls, self.logprobs):
            parts.clear()

    def to_answer(self, *, with_logprobs: bool) -> Answer:
        return Answer(
            response=self.response,
            finish_reason=self.last_chunk.finish_reason or "stop",
            tool_calls=self.tool_calls,
            reasoning="".join(self.thoughts) or None,
            logprobs=self.logprobs if with_logprobs else None,
        )
