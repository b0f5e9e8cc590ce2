"""What a server's refusal says about the parameters of the request, and how the request is to be sent instead."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from actors.engines.remote.openai_client import ABOUT_THE_REQUEST, NO_ROUTE_STATUSES, ServerRefusal
from bus.errors import PermanentError, TemporaryError

RENAMED = {"max_tokens": "max_completion_tokens"}
LEAVABLE = frozenset({
    *("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop"),
    *("stream", "stream_options", "parallel_tool_calls"),
})  # fmt: skip
"""Parameters that may be left out. Answers are cut at stop sequences here, too, and to their first tool call."""
ASKED = ("tools", "tool_choice", "logprobs", "top_logprobs", "reasoning_effort", "prompt")
"""Parameters that are sent only where the client asks for what they do: without them the answer would be another one."""
REFUSAL_STATUSES = frozenset({400, 404, 422, 501})
ASKED_STATUSES = REFUSAL_STATUSES | {403, 405}
FEATURE = re.compile(r"support|requires?\b|enable|allow|--\w", re.IGNORECASE)
"""Of a refusal: what was asked for is missing, whatever its value."""
TOOLS_MISSING = re.compile(
    r"tools? (?:param |parameter )?requires?\b|not support (?:tools?|function)|tools?[^.]{0,60}--jinja", re.IGNORECASE
)
"""Of a status 500, with which llama.cpp refuses tools."""
NAME_WORDS = {
    "stream": "stream(?:ing)?",
    "response_format": "response[_ ]?format|json_?schema|json_?object",
    "max_tokens": "max[_ ]?tokens|maximum (?:number of )?(?:output |completion )?tokens",
    "tools": r"tools?|tool[_ ](?:calls?|calling|use)|function[_ ]call(?:s|ing)?",
    "tool_choice": r"tool[_ ]choice",
    "reasoning_effort": r"reasoning(?:[_ .]effort)?|thinking",
    "prompt": r"v1/completions",
}
"""How errors name parameters, where it is not the name itself."""
UNSUPPORTED = re.compile(
    r"unsupported|n(?:o|')t (?:\w+ )?(?:support|permit|allow|accept|recogni|available|implement)|unrecogni|unknown|unexpected|extra|"
    r"forbidden|additional propert|cannot find field|no such|deprecated|cannot both|only one of|only the default|instead|does not exist|"
    r"not used by|could not be mapped|不支持|不存在|未知|nicht unterst|unbekannt|non support|inconnu|no soporta|desconocid|não support",
    re.IGNORECASE,
)
VALUE = re.compile(
    r"less than|greater than|must be|should be|range|at most|at least|too (?:large|big|high|low|small|long|many)|maximum|minimum|exceed|"
    r"between|positive|[<>]|范围|大于|小于|超过",
    re.IGNORECASE,
)
RANGE = re.compile(r"\d|positive|range", re.IGNORECASE)
WRONG_VALUE = re.compile(r"invalid[ _](?:[a-z]{1,20}[ _])?(?:value|type)|\bexpected|取值", re.IGNORECASE)
CERTAIN = re.compile(
    r"only the default|unsupported[ _](?:parameter|value|argument)|unrecogni[sz]ed|extra_forbidden|unexpected keyword|cannot both|"
    r"unknown (?:name|parameter|field|argument)|found that support parameter|not used by the model",
    re.IGNORECASE,
)
"""The parameter, and not its value, is refused."""
EITHER = re.compile(r"both|one of|together", re.IGNORECASE)
KNOWN_NAMES = re.compile(
    r"(?:expected one of|known properties|(?:supported|valid|allowed) (?:parameters|fields))[^;.)]{0,2000}", re.IGNORECASE
)
"""A list of the names that the server does know."""
SCHEMA_WORDS = re.compile(r"response_?format|json_?(?:schema|object)|guided|structured", re.IGNORECASE)
BARE_SCHEMA = re.compile(r"schema", re.IGNORECASE)
INVALID_SCHEMA = re.compile(r"invalid (?:json )?schema", re.IGNORECASE)
JSON_OBJECT = {"type": "json_object"}
JSON_OBJECT_AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "object", "schema": {"type": "object"}}}
OWN_VALUES: dict[str, float] = {"temperature": 0, "top_p": 1}
"""Values that we send unasked, and that some servers refuse: a greedy temperature, and a share that selects nothing."""
LIMIT = re.compile(
    r"(?:at most|less than or equal to|no (?:more|greater|larger|higher) than|<=|≤|[\[(]\s*[01]\s*,|between [01] and|"
    r"maximum (?:[a-z_]{1,20} ){0,6}(?:of|is)|limit (?:of|is)|(?P<below>(?:less|lower|smaller|fewer) than))"
    r"[\s`'\"]{0,3}(?P<number>\d{1,3}(?:,\d{3})+|\d{1,9})(?![\w.,-]*\d)",
    re.IGNORECASE,
)
"""The number after words that name a largest value; also with separators of thousands."""
OF_THIS_REQUEST = re.compile(r"prompt|context|input(?! should)|messages", re.IGNORECASE)
"""The limit depends on the request, so that others do not have it."""
NO_LIMIT = re.compile(
    r"\bsum\b|\btotal\b|\d\s*\+\s*\d|quota|remaining|\bplan\b|balance|credit|billing|rate.?limit|per (?:minute|hour|day)", re.IGNORECASE
)
"""What is exceeded is something else than a largest value of `max_tokens`."""
MAX_LIMITS = 2
MIN_TOKEN_LIMIT = 16
QUOTED_KEYS = frozenset({"input", "ctx", "request", "body", "messages", "received"})
"""Members of an error that may quote the request, and with it what a client wrote."""

Changes = dict[str, "Change"]


@dataclass(frozen=True)
class Change:
    """How a parameter is sent. `name`: its name there; None: it is left out, with `only` where it has this value alone.

    `limit`: its largest value. `once`: for this request; others may need another change.
    """

    name: str | None
    limit: int | None = None
    only: float | None = None
    once: bool = False

    def __str__(self) -> str:
        limit = f", at most {self.limit}" if self.limit is not None else ""
        return f"{self.name}{limit}" if self.name else "left out" if self.only is None else f"left out where it is {self.only:g}"


class Lessons:
    """What the refusals of one request teach. `changes`: how it is sent next; `learned`: those of them that hold for other requests."""

    def __init__(self, body: dict[str, Any], changes: Changes, learned: Changes) -> None:
        self._body, self._changes, self._learned = body, changes, learned
        self._useless: set[str] = set()
        self._last: tuple[str, Change | None, Change | None] | None = None
        self._last_words: list[str] = []
        self._limits = 0

    def learn(self, refusal: ServerRefusal) -> None:
        """One more change. Raises the refusal where it names no parameter, or nothing helps.

        A change after which the server says the same is undone, and not tried again.
        """
        if "prompt" in self._body and refusal.status in NO_ROUTE_STATUSES and not ABOUT_THE_REQUEST.search(refusal.answer):
            raise unsupported("prompt", refusal) from None
        text, param = read_refusal(refusal.answer)
        words = [word for word in text.split() if not any(map(str.isdigit, word))]
        if words == self._last_words:
            self._undo()
        self._last_words = words
        sent = adapt_body(self._body, self._changes)
        known = {name: value for name, value in self._body.items() if name not in self._useless or name == "response_format"}
        name = named_parameter(text, param, known, sent, self._changes) if refusal.status in ASKED_STATUSES else None
        if name in ASKED and (UNSUPPORTED.search(text) or CERTAIN.search(text) or FEATURE.search(text)):
            raise unsupported(name, refusal) from None
        if name is None or name in ASKED or refusal.status not in REFUSAL_STATUSES or (refusal.status == 404 and not CERTAIN.search(text)):
            raise refusal
        if name == "response_format":
            name, change = self._learn_format(refusal, text, param, sent)
        else:
            change = self._learn_parameter(refusal, name, text, param)
        self._last = name, self._changes.get(name), self._learned.get(name)
        self._changes[name] = change
        if not change.once:
            self._learned[name] = change

    def _undo(self) -> None:
        if self._last is None:
            return
        name, changed, learned = self._last
        self._useless.add(name)
        for changes, before in ((self._changes, changed), (self._learned, learned)):
            changes.pop(name, None)
            if before:
                changes[name] = before
        self._last = None

    def _learn_parameter(self, refusal: ServerRefusal, name: str, text: str, param: str) -> Change:
        known = self._changes.get(name)
        if VALUE.search(text) and RANGE.search(text) and not CERTAIN.search(text):
            return self._learn_value(refusal, name, text)
        named = bool(param) and param in (name, known and known.name) and not VALUE.search(text) and not WRONG_VALUE.search(text)
        if not (named or UNSUPPORTED.search(text) or CERTAIN.search(text)):
            raise refusal
        other = RENAMED.get(name)
        return Change(other) if other and known is None else Change(None)

    def _learn_value(self, refusal: ServerRefusal, name: str, text: str) -> Change:
        """A value that is refused is the client's to change; but the limit of an answer and OWN_VALUES are our own defaults."""
        known, value = self._changes.get(name), self._body[name]
        if OWN_VALUES.get(name) == value:
            return Change(None, only=value)
        limit = token_limit(text) if name == "max_tokens" and self._limits < MAX_LIMITS else None
        largest = known.limit if known and known.limit is not None else value
        if limit is None or not MIN_TOKEN_LIMIT <= limit < largest:
            raise refusal
        self._limits += 1
        return replace(known or Change(name), limit=limit, once=bool(OF_THIS_REQUEST.search(text)))

    def _learn_format(self, refusal: ServerRefusal, text: str, param: str, sent: dict[str, Any]) -> tuple[str, Change]:
        """`json_object` is asked for as a schema, and a schema that is invalid under strict rules without them; else the JSON is refused.

        A text that says no more than `schema` is about this request's.
        """
        form = sent["response_format"]
        bare = not (SCHEMA_WORDS.search(text) or param == "response_format")
        if form == JSON_OBJECT and "response_format" not in self._useless:
            return "response_format", Change("response_format", once=bare)
        invalid = bool(INVALID_SCHEMA.search(text))
        if invalid and form.get("json_schema", {}).get("strict") and "strict" not in self._useless:
            return "strict", Change(None, once=True)
        code = "schema-refused" if invalid or bare else "json-unsupported"
        raise PermanentError(code, f"JSON was requested, which the model's server refuses: {refusal}") from None


def token_limit(text: str) -> int | None:
    """The largest `max_tokens` that a text names; None where it names none, or is about something else."""
    if NO_LIMIT.search(text) or not (found := LIMIT.search(text)):
        return None
    return int(found["number"].replace(",", "")) - bool(found["below"])


def adapt_body(body: dict[str, Any], changes: Mapping[str, Change]) -> dict[str, Any]:
    """The request as the server takes it."""
    adapted: dict[str, Any] = {}
    for name, value in body.items():
        change = changes.get(name)
        if name == "response_format":
            adapted[name] = _adapt_format(value, changes)
        elif not is_left_out(name, body, changes):
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


def is_left_out(name: str, body: dict[str, Any], changes: Mapping[str, Change]) -> bool:
    change = changes.get(name)
    return change is not None and name in LEAVABLE and change.name is None and (change.only is None or body[name] == change.only)


def named_parameter(text: str, param: str, body: dict[str, Any], sent: dict[str, Any], changes: Changes) -> str | None:
    """The parameter of `body` that an error is about: the one in its field `param`, else the one that it names first."""
    known = (*LEAVABLE, *ASKED, "response_format")
    names = {changes[name].name or name if name in changes else name: name for name in known if name in body}
    names = {there: name for there, name in names.items() if there in sent}
    if param in names:
        return names[param]
    text = KNOWN_NAMES.sub("", text)
    found = {match.start(): name for there, name in names.items() if (match := _name_pattern(there).search(text))}
    if {"temperature", "top_p"} <= set(found.values()) and EITHER.search(text):
        return "top_p"
    if found:
        return found[min(found)]
    about_schema = SCHEMA_WORDS.search(text) or (BARE_SCHEMA.search(text) and (INVALID_SCHEMA.search(text) or UNSUPPORTED.search(text)))
    return "response_format" if "response_format" in names and about_schema else None


def unsupported(name: str, error: Exception) -> PermanentError:
    """The error where a server cannot do what was asked for."""
    return PermanentError("parameter-unsupported", f"{name} is not supported by the model's server: {error}")


def missing_feature(error: TemporaryError, body: dict[str, Any]) -> PermanentError | None:
    """The error of a server that reports as its own failure that it cannot do what was asked for; None for any other failure."""
    return unsupported("tools", error) if "tools" in body and TOOLS_MISSING.search(str(error)) else None


def _name_pattern(name: str) -> re.Pattern[str]:
    """A name in text, also in camel case; `streaming` is about `stream`."""
    plain = NAME_WORDS.get(name, name.replace("_", "[_ ]?"))
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
            for name, member in value.items():
                if name not in QUOTED_KEYS:
                    words += _name_in_key(name, member)
                    pending.append((member, depth + 1))
        elif isinstance(value, list) and depth < 8:
            pending += [(member, depth + 1) for member in value]
        elif isinstance(value, str):
            words.append(value)
    param = re.split(r"[.\[]", params[0].removeprefix("body."), maxsplit=1)[0] if params else ""
    return " ".join(words), param


def _name_in_key(key: str, member: Any) -> list[str]:
    """The name of a parameter whose faults are listed below it, as in `{"seed": ["Unknown field."]}`; not of one that is quoted."""
    name = key.removeprefix("$.").removeprefix("body.")
    about = str(member)[:1000] if name in LEAVABLE and isinstance(member, str | list | dict) else ""
    return [name] if about and (UNSUPPORTED.search(about) or VALUE.search(about)) else []
