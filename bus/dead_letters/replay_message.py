"""The message of a replay: what died, value by value as it was encoded. Each difference that cannot be avoided is named with its reason."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pamqp import encode

from bus.amqp.header_values import read_id, read_text
from bus.amqp.messages import OutboundMessage
from bus.amqp.raw_properties import RawProperties
from bus.amqp.tolerant_decoding import decode_properties, undecodable_reason
from bus.dead_letters.record import first_death_entry, is_ours
from bus.dead_letters.typed_values import describe_field, describe_property
from bus.errors import PermanentError
from bus.masking import mask_error
from contracts import broker_names
from contracts.dead_letter import ReplayDifference
from contracts.wire import Header

Row = Mapping[str, Any]
"""A row of the queries `next_letters` and `replay_properties`."""

PROPERTIES_LIMIT = 130_000
"""Bytes. RabbitMQ takes frames of 131,072 and closes the connection of whoever sends a larger one."""
MAX_EXPIRATION = 2**32 - 1
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"

BY_BROKER = "the broker writes it, and reads it as what happened to this message"
BY_ATELIER = "Atelier wrote it when the message failed"
BROKER_HEADERS = frozenset({
    "x-death", "x-delivery-count", "x-acquired-count",
    *(f"x-{which}-death-{what}" for which in ("first", "last") for what in ("queue", "reason", "exchange")),
})  # fmt: skip
SENDER_SELECTED_HEADERS = frozenset({"CC", "BCC"})
FAILURE_HEADERS = frozenset({
    Header.FIRST_FAILED_AT, Header.LAST_FAILED_AT, Header.FAULT_CODE, Header.FAULT_MESSAGE, Header.EXCEPTION_TYPE, Header.EXCEPTION_STACK,
    Header.ORIGIN_QUEUE, Header.ORIGIN_EXCHANGE, Header.ORIGIN_ROUTING_KEY, Header.ORIGINAL_PROPERTIES,
})  # fmt: skip
WANTED = "it has passed, and the work is wanted"
MAX_SHORT_STRING = 255
"""Bytes of a property, and of the name of a header."""
UNDECODABLE = "a worker cannot decode the properties of this message, so that it would fail again"


@dataclass
class _Replay:
    """The properties as far as they are built, and their differences from those that died."""

    raw: RawProperties
    differences: list[ReplayDifference] = field(default_factory=list)

    def set_text(self, name: str, text: str | None, reason: str) -> None:
        """Set a property that is a short string, or leave it out."""
        if (died := describe_property(self.raw, name)) == text:
            return
        self.raw = self.raw.with_texts(**{name: text})
        self._record(name, reason, died, text)

    def set_header(self, name: str, value: Any, reason: str) -> None:
        died = self.raw.header(name)
        self.raw = self.raw.with_headers({name: value})
        self._record(f"header {name}", reason, describe_field(died) if died else None, str(value))

    def leave_out_headers(self, names: Iterable[str], reason: str) -> None:
        present = {name for name, _ in self.raw.headers or ()}
        for name in sorted(name for name in names if name.encode() in present):
            died = self.raw.header(name)
            self.raw = self.raw.without_headers([name])
            self._record(f"header {name}", reason, describe_field(died) if died else None, None)

    def leave_out_everything(self, reason: str) -> None:
        for name in self.raw.values:
            self._record(name, reason, describe_property(self.raw, name), None)
        if self.raw.headers:
            self._record("headers", reason, f"{len(self.raw.headers)} headers", None)
        self.raw = RawProperties({})

    def _record(self, name: str, reason: str, died: str | None, sent: str | None) -> None:
        change: Any = "added" if died is None else "left out" if sent is None else "changed"
        self.differences.append(ReplayDifference(name=name, change=change, reason=reason, died=died, sent=sent))


def build_replay_message(row: Row) -> OutboundMessage:
    """The message to publish: through the default exchange to the queue that failed.

    Raises PermanentError: properties-too-large, tenant-differs.
    """
    raw = _replay(row).raw
    encoded = _encode(raw, row)
    return OutboundMessage(
        exchange="",
        routing_key=row["target"],
        body=row["body"],
        message_id=raw.text("message_id") or row["sent_as"],
        job_id=raw.text("correlation_id") or "",
        type=raw.text("message_type") or "",
        headers=dict(decode_properties(encoded).headers or {}),
        reply_to=raw.text("reply_to"),
        mandatory=True,
        properties=raw,
    )


def replay_differences(row: Row) -> list[ReplayDifference]:
    """In what the message of a replay differs from the one that died; for one that cannot be sent, why."""
    try:
        replay = _replay(row)
        _encode(replay.raw, row)
    except Exception as error:  # of every kind, so that one row does not hide the differences of the others
        code = error.code if isinstance(error, PermanentError) else type(error).__name__
        return [ReplayDifference(name="message", change="left out", reason=f"it cannot be sent: {code}", died=mask_error(error)[:300])]
    return replay.differences


def _encode(raw: RawProperties, row: Row) -> bytes:
    """Raises PermanentError: properties-too-large, tenant-differs."""
    tenant, stored = read_text(raw.header_text(Header.TENANT)) or None, read_text(row["tenant"]) or None
    if _is_worker_queue(row) and tenant != stored:
        raise PermanentError("tenant-differs", f"it was stored for the tenant {stored!r}, and its properties name {tenant!r}")
    encoded = raw.encode()
    if len(encoded) > PROPERTIES_LIMIT:
        raise PermanentError("properties-too-large", f"its properties have {len(encoded)} bytes, and the broker takes {PROPERTIES_LIMIT}")
    return encoded


def _replay(row: Row) -> _Replay:
    replay = _what_died(row)
    if row["edited"]:
        _apply_edit(replay, row)
    _apply_ids(replay, row)
    _apply_broker_rules(replay, row)
    if _is_worker_queue(row):
        replay.set_text("reply_to", None, "its caller was answered when the message failed")
        replay.leave_out_headers([Header.DEADLINE.value], WANTED)
    if _is_consumed_by_us(row):
        _leave_out_failed_delivery(replay)
    replay.set_header(Header.REPLAY.value, row["replays"], "it counts the replays, so that each failure is recognised as a new one")
    return replay


def _is_worker_queue(row: Row) -> bool:
    return str(row["target"]).startswith(broker_names.work_queue(""))


def _is_consumed_by_us(row: Row) -> bool:
    """By a worker, or by an adapter, whose queue belongs to another system."""
    return _is_worker_queue(row) or is_ours(row["dead_queue"])


def _what_died(row: Row) -> _Replay:
    if row["properties"] is None:
        replay = _properties_of_earlier_release(row)
        reason = "the dead letter was stored by an earlier release, which kept what JSON can hold and not the types"
        replay.differences.append(ReplayDifference(name="headers", change="changed", reason=reason))
        return replay
    try:
        replay = _Replay(RawProperties.parse(row["properties"]))
    except ValueError as error:
        difference = ReplayDifference(name="properties", change="left out", reason="the protocol does not allow them", died=str(error))
        return _Replay(RawProperties({}), [difference])
    if _is_consumed_by_us(row) and undecodable_reason(decode_properties(row["properties"]).headers):
        replay.leave_out_everything(UNDECODABLE)
    return replay


def _properties_of_earlier_release(row: Row) -> _Replay:
    """Without what is longer than the protocol allows: no release has checked it."""
    names = {"content_type": row["content_type"] or "application/json", "content_encoding": row["content_encoding"]}
    texts = names | {"message_type": row["type"], "message_id": row["message_id"], "correlation_id": row["job_id"]}
    present = {name: text for name, text in texts.items() if text is not None}
    too_long = [name for name, text in present.items() if len(text.encode()) > MAX_SHORT_STRING]
    values = {name: encode.short_string(text) for name, text in present.items() if name not in too_long}
    raw = RawProperties(values | {"delivery_mode": b"\x02"})
    for name, value in row["headers"].items():
        with suppress(TypeError):  # for a number of more than 64 bits
            if len(name.encode()) <= MAX_SHORT_STRING:
                raw = raw.with_headers({name: value})
    reason = f"the protocol allows {MAX_SHORT_STRING} bytes"
    return _Replay(raw, [ReplayDifference(name=name, change="left out", reason=reason, died=present[name][:300]) for name in too_long])


def _apply_edit(replay: _Replay, row: Row) -> None:
    reason = "the edited body is JSON in UTF-8"
    replay.set_text("content_encoding", None, reason)
    if "json" not in (replay.raw.text("content_type") or ""):
        replay.set_text("content_type", "application/json", reason)
    replay.set_text("message_type", row["edited_type"] or replay.raw.text("message_type"), "the edited body has the type of its contract")


def _apply_ids(replay: _Replay, row: Row) -> None:
    """The message keeps its ids, or gets the new one that was requested."""
    if row["sent_as"] != row["message_id"]:
        replay.set_text("message_id", row["sent_as"], "a new id was requested")
        replay.set_header(Header.CAUSATION.value, row["message_id"], "it names the message that died")
        replay.leave_out_headers([Header.FORMER_ID.value], "the message has a new id")
        if replay.raw.text("correlation_id") is None:
            replay.set_text("correlation_id", row["job_id"], "the job keeps its id")
    elif read_id(replay.raw.text("message_id")) != row["message_id"]:
        replay.set_text(
            "message_id", row["message_id"], "it had none that can be read; the dead letter is recognised by it when it fails again"
        )


def _apply_broker_rules(replay: _Replay, row: Row) -> None:
    """What the broker would refuse, change or take as an order to itself."""
    replay.set_text("user_id", None, "the broker takes no name but that of the user who sends the replay")
    if replay.raw.text("reply_to") == DIRECT_REPLY_TO:
        replay.set_text("reply_to", None, "the broker takes it from a requester only")
    expiration = replay.raw.text("expiration") or first_death_entry(dict(row["headers"])).get("original-expiration")
    if _is_consumed_by_us(row):
        replay.set_text("expiration", None, WANTED)
    elif _is_expiration(expiration):
        replay.set_text("expiration", expiration, "the broker took it off when the message died")
    else:
        replay.set_text("expiration", None, "the broker refuses it")
    replay.leave_out_headers(BROKER_HEADERS, BY_BROKER)
    replay.leave_out_headers(SENDER_SELECTED_HEADERS, "the broker would send a copy to each of its keys")


def _is_expiration(value: Any) -> bool:
    """The broker takes a decimal number of milliseconds. It closes the channel of whoever sends any other text."""
    if not isinstance(value, str) or len(value) > MAX_SHORT_STRING:
        return False
    return value.isascii() and value.isdecimal() and int(value) <= MAX_EXPIRATION


def _leave_out_failed_delivery(replay: _Replay) -> None:
    """What a worker or an adapter would take as part of this delivery."""
    replay.leave_out_headers([Header.ATTEMPT.value], "a replay starts with the first attempt")
    replay.leave_out_headers([Header.SIGNATURE.value], "a replay is signed anew where messages are signed")
    replay.leave_out_headers(FAILURE_HEADERS, BY_ATELIER)
