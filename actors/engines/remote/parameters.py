"""Which parameters one server takes: learned from its refusals, or named in the settings.

A server refuses a parameter that it does not know with 400 or 422. The request is sent again with the parameter's other name, or without
it; what the server then accepts is remembered for the model, for some time. What would change the meaning of an answer, its JSON, is never
left out: the refusal is reported.
"""

import asyncio
import json
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog

from actors.engines.remote.openai_client import ServerRefusal
from bus.errors import PermanentError

RENAMED = {"max_tokens": "max_completion_tokens"}
LEAVABLE = frozenset({
    *("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop"),
    *("stream", "stream_options"),
})  # fmt: skip
"""Parameters that may be left out. Answers are cut at stop sequences here, too."""
UNREPORTED = frozenset({"stop", "stream", "stream_options"})
"""An answer without them does not differ, so that they are in the log and in the status only."""
REFUSAL_STATUSES = frozenset({400, 422, 501})
UNSUPPORTED = re.compile(
    r"unsupported|n(?:o|')t (?:\w+ )?(?:support|permit|allow|accept|recogni|available|implement)|unrecogni|unknown|unexpected|extra|"
    r"forbidden|additional propert|cannot find field|no such|deprecated|cannot both|only one of|only the default|instead|does not exist",
    re.IGNORECASE,
)
VALUE = re.compile(
    r"less than|greater than|must be|should be|range|at most|at least|too (?:large|big|high|low|small|long|many)|maximum|minimum|exceed|"
    r"between|positive|[<>]",
    re.IGNORECASE,
)
RANGE = re.compile(r"\d|positive|range", re.IGNORECASE)
CERTAIN = re.compile(
    r"only the default|unsupported[ _](?:parameter|value|argument)|unrecogni[sz]ed|extra_forbidden|unexpected keyword|cannot both|"
    r"unknown (?:name|parameter|field|argument)",
    re.IGNORECASE,
)
"""The parameter, and not its value, is refused."""
EITHER = re.compile(r"both|one of|together", re.IGNORECASE)
SCHEMA_WORDS = re.compile(r"response_?format|json_?(?:schema|object)|schema|guided|structured", re.IGNORECASE)
INVALID_SCHEMA = re.compile(r"invalid (?:json )?schema", re.IGNORECASE)
JSON_OBJECT = {"type": "json_object"}
JSON_OBJECT_AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "object", "schema": {"type": "object"}}}
OWN_VALUES: dict[str, float] = {"temperature": 0, "top_p": 1}
"""Values that we send unasked, and that some servers refuse: a greedy temperature, and a share that selects nothing."""
LEARNED_SECONDS, FIRST_SECONDS = 3600.0, 1.0
MAX_MODELS, MAX_CHANGES = 64, 16
MIN_TOKEN_LIMIT = 16
QUOTED_KEYS = frozenset({"input", "ctx", "request", "body", "messages", "received"})
"""Members of an error that may quote the request, and with it what a client wrote."""

Result = TypeVar("Result")
Changes = dict[str, "Change"]

log = structlog.get_logger()


@dataclass(frozen=True)
class Change:
    """How a parameter is sent. `name`: its name there; None: it is left out, with `only` where it has this value alone.

    `limit`: its largest value.
    """

    name: str | None
    limit: int | None = None
    only: float | None = None

    def __str__(self) -> str:
        limit = f", at most {self.limit}" if self.limit is not None else ""
        return f"{self.name}{limit}" if self.name else "left out" if self.only is None else f"left out where it is {self.only:g}"


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
        it refuses the JSON that was requested, and what `send` raises.
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
        while True:
            sent = adapt_body(body, changes)
            try:
                result = await send(sent)
            except ServerRefusal as refusal:
                name, change = learn(refusal, body, sent, changes)
                changes[name] = change
                if name != "strict":  # whose schema is invalid differs between requests
                    learned[name] = change
                continue
            self.remember(model, learned)
            return result, tuple(name for name in body if name not in UNREPORTED and _is_left_out(name, body, changes))


def adapt_body(body: dict[str, Any], changes: Mapping[str, Change]) -> dict[str, Any]:
    """The request as the server takes it."""
    adapted: dict[str, Any] = {}
    for name, value in body.items():
        change = changes.get(name)
        if name == "response_format":
            adapted[name] = _adapt_format(value, changes)
        elif not _is_left_out(name, body, changes):
            limited = min(value, change.limit) if change and change.limit is not None else value
            adapted[change.name if change and change.name else name] = limited
    if "stream" not in adapted:
        adapted.pop("stream_options", None)
    return adapted


def _adapt_format(value: dict[str, Any], changes: Mapping[str, Change]) -> dict[str, Any]:
    if "response_format" in changes and value == JSON_OBJECT:
        return JSON_OBJECT_AS_SCHEMA
    if "strict" in changes and "json_schema" in value:
        return value | {"json_schema": value["json_schema"] | {"strict": False}}
    return value


def _is_left_out(name: str, body: dict[str, Any], changes: Mapping[str, Change]) -> bool:
    change = changes.get(name)
    return change is not None and name in LEAVABLE and change.name is None and (change.only is None or body[name] == change.only)


def learn(refusal: ServerRefusal, body: dict[str, Any], sent: dict[str, Any], changes: Changes) -> tuple[str, Change]:
    """The parameter that the refusal names, and how to send it. Raises the refusal where it names none, or nothing helps."""
    text, param = read_refusal(refusal.answer)
    name = named_parameter(text, param, body, sent, changes) if refusal.status in REFUSAL_STATUSES else None
    if name is None or len(changes) >= MAX_CHANGES:
        raise refusal
    if name == "response_format":
        return _learn_format(refusal, text, sent, changes)
    known, value = changes.get(name), body[name]
    if VALUE.search(text) and RANGE.search(text) and not CERTAIN.search(text):
        return name, _learn_value(refusal, name, value, text, known)
    if not (UNSUPPORTED.search(text) or CERTAIN.search(text)):
        raise refusal
    other = RENAMED.get(name)
    return name, Change(other) if other and known is None else Change(None)


def _learn_value(refusal: ServerRefusal, name: str, value: Any, text: str, known: Change | None) -> Change:
    """A value that is refused is the client's to change; but the limit of an answer and OWN_VALUES are our own defaults."""
    if OWN_VALUES.get(name) == value:
        return Change(None, only=value)
    if name == "max_tokens":
        largest = known.limit if known and known.limit is not None else value
        limits = [int(number) for number in re.findall(r"(?<![\w.-])\d{2,9}(?![\w-])", text) if MIN_TOKEN_LIMIT <= int(number) < largest]
        if limits:
            return replace(known or Change(name), limit=max(limits))
    raise refusal


def _learn_format(refusal: ServerRefusal, text: str, sent: dict[str, Any], changes: Changes) -> tuple[str, Change]:
    """`json_object` is asked for as a schema, and a schema that is invalid under strict rules without them; else the JSON is refused."""
    form = sent["response_format"]
    if form == JSON_OBJECT:
        return "response_format", Change("response_format")
    invalid = bool(INVALID_SCHEMA.search(text))
    if invalid and form["json_schema"].get("strict"):
        return "strict", Change(None)
    code = "schema-refused" if invalid else "json-unsupported"
    raise PermanentError(code, f"JSON was requested, which the model's server refuses: {refusal}") from None


def named_parameter(text: str, param: str, body: dict[str, Any], sent: dict[str, Any], changes: Changes) -> str | None:
    """The parameter of `body` that an error is about: the one in its field `param`, else the one that it names first."""
    names = {changes[name].name or name if name in changes else name: name for name in (*LEAVABLE, "response_format") if name in body}
    names = {there: name for there, name in names.items() if there in sent}
    if param in names:
        return names[param]
    found = {match.start(): name for there, name in names.items() if (match := _name_pattern(there).search(text))}
    if {"temperature", "top_p"} <= set(found.values()) and EITHER.search(text):
        return "top_p"
    if found:
        return found[min(found)]
    return "response_format" if "response_format" in names and SCHEMA_WORDS.search(text) else None


def _name_pattern(name: str) -> re.Pattern[str]:
    """A name in text, also in camel case; `streaming` is about `stream`."""
    plain = name.replace("_", "[_ ]?") + ("(?:ing)?" if name == "stream" else "")
    plain = f"{plain}|json_?schema|json_?object" if name == "response_format" else plain
    return re.compile(rf"(?<![A-Za-z_])(?:{plain})(?![A-Za-z_])", re.IGNORECASE)


def read_refusal(answer: str) -> tuple[str, str]:
    """The words of an error without what it quotes of the request, and the parameter in its field `param`."""
    try:
        body = json.loads(answer)
    except (ValueError, RecursionError):
        return answer, ""
    words: list[str] = []
    params: list[str] = []
    pending = [(body, 0)]
    while pending and len(words) < 200:
        value, depth = pending.pop(0)
        if isinstance(value, dict) and depth < 8:
            param = value.get("param")
            params += [param] if isinstance(param, str) else []
            pending += [(member, depth + 1) for name, member in value.items() if name not in QUOTED_KEYS]
        elif isinstance(value, list) and depth < 8:
            pending += [(member, depth + 1) for member in value]
        elif isinstance(value, str):
            words.append(value)
    param = params[0].removeprefix("body.").partition(".")[0] if params else ""
    return " ".join(words), param
