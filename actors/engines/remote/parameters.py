"""Which parameters one server takes: learned from its refusals, or named in the settings.

A server refuses a parameter that it does not know with 400 or 422. The request is sent again with the parameter's other name, or without
it; what the server then accepts is remembered for the model, for some time. What would change the meaning of an answer, its JSON, is never
left out, nor are tools, log probabilities and the like: the refusal is reported.
"""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from actors.engines.remote.openai_client import ServerRefusal
from actors.engines.remote.refusals import LEAVABLE, Change, Changes, Lessons, adapt_body, is_left_out, missing_feature
from bus.errors import TemporaryError

UNREPORTED = frozenset({"stop", "stream", "stream_options", "parallel_tool_calls"})
"""An answer without them does not differ, so that they are in the log and in the status only."""
LEARNED_SECONDS, FIRST_SECONDS = 3600.0, 1.0
MAX_MODELS, MAX_REQUESTS = 64, 16

Result = TypeVar("Result")

log = structlog.get_logger()


class FirstRequest:
    """The first request to a model finds out what its server takes; those that come meanwhile wait for it, but not long."""

    def __init__(self) -> None:
        self.learned: Changes = {}
        self.done = asyncio.Event()
        self._until = time.monotonic() + FIRST_SECONDS

    async def wait(self) -> Changes:
        """Nothing once it has ended; what it has learned so far, when it takes longer than FIRST_SECONDS."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                await self.done.wait()
        return {} if self.done.is_set() else self.learned


def parse_profile(text: str) -> Changes:
    """The setting: `max_tokens=max_completion_tokens,repetition_penalty` renames the first and leaves out the second. Raises ValueError."""
    changes: Changes = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, other = (part.strip() for part in entry.partition("="))
        if name not in LEAVABLE or (other and not re.fullmatch(r"\w{1,64}", other)):
            raise ValueError(f"{entry!r} is none of the parameters {', '.join(sorted(LEAVABLE))}, with or without `=` and another name")
        changes[name] = Change(other or None)
    return changes


def checked_profile(text: str) -> str:
    """The setting itself. Raises ValueError for one that cannot be read."""
    parse_profile(text)
    return text


class ServerParameters:
    """What one server takes. Learned changes are kept by model, in this process; the profile's apply to every model, for good."""

    def __init__(self, profile: Changes | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._profile, self._clock = profile or {}, clock
        self._learned: OrderedDict[str, dict[str, tuple[Change, float]]] = OrderedDict()
        self._first: OrderedDict[str, FirstRequest] = OrderedDict()

    def changes(self, model: str) -> Changes:
        now, entries = self._clock(), self._learned.get(model, {})
        learned = {name: change for name, (change, expires) in entries.items() if now < expires}
        if len(learned) < len(entries):  # the next request is a first one again
            self._learned[model] = {name: entries[name] for name in learned}
            self._first.pop(model, None)
        return self._profile | learned

    def remember(self, model: str, changes: Changes) -> None:
        """Logs what is new."""
        known = self.changes(model)
        new = {name: change for name, change in changes.items() if known.get(name) != change}
        if not new:
            return
        expires = self._clock() + LEARNED_SECONDS
        self._learned[model] = {name: entry for name, entry in self._learned.get(model, {}).items() if name in known}
        self._learned[model] |= {name: (change, expires) for name, change in new.items()}
        self._learned.move_to_end(model)
        if len(self._learned) > MAX_MODELS:
            self._learned.popitem(last=False)
        log.warning("server.parameters_adapted", model=model, parameters={name: str(change) for name, change in new.items()})

    def describe(self, model: str) -> dict[str, str]:
        """For the status: how each parameter is sent that is not sent as it is."""
        return {name: str(change) for name, change in self.changes(model).items()}

    async def send(self, body: dict[str, Any], send: Callable[[dict[str, Any]], Awaitable[Result]]) -> tuple[Result, tuple[str, ...]]:
        """Send the request as the server takes it; again, while it refuses one more of its parameters.

        Returns what `send` returned, and which parameters were left out. Raises PermanentError("json-unsupported" · "schema-refused") when
        it refuses the JSON that was requested, ("parameter-unsupported") when it refuses what else was asked for, and what `send` raises.
        """
        model = str(body["model"])
        changes = self.changes(model)
        if first := self._first.get(model):
            so_far = await first.wait()
            return await self._send_until_taken(model, body, self.changes(model) | so_far, {}, send)
        first = self._first[model] = FirstRequest()
        if len(self._first) > MAX_MODELS:
            self._first.popitem(last=False)
        try:
            return await self._send_until_taken(model, body, changes, first.learned, send)
        except BaseException:
            self._first.pop(model, None)
            raise
        finally:
            first.done.set()

    async def _send_until_taken(
        self, model: str, body: dict[str, Any], changes: Changes, learned: Changes, send: Callable[[dict[str, Any]], Awaitable[Result]]
    ) -> tuple[Result, tuple[str, ...]]:
        """What is learned is added to `learned`, and remembered once the server takes the request."""
        lessons = Lessons(body, changes, learned)
        for _ in range(MAX_REQUESTS - 1):
            try:
                result = await send(adapt_body(body, changes))
            except ServerRefusal as refusal:
                lessons.learn(refusal)
                continue
            except TemporaryError as error:
                raise missing_feature(error, body) or error from None
            break
        else:
            result = await send(adapt_body(body, changes))
        self.remember(model, learned)
        return result, tuple(name for name in body if name not in UNREPORTED and is_left_out(name, body, changes))
