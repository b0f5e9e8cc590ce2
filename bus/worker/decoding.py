"""Decodes a command: checks its size, version and schema, and that its itinerary names known steps."""

from pydantic import ValidationError

from bus.actor import Actor
from bus.amqp.signing import FAULT_MESSAGES
from bus.delivery import Delivery
from bus.errors import PermanentError, validation_problems
from bus.json_text import storable_json
from contracts.broker_names import REPLY_QUEUE_PREFIXES
from contracts.identifiers import ID_RULE
from contracts.slip import Slip, reachable_steps
from contracts.steps import COMMANDS
from contracts.wire import message_type
from contracts.wire_model import WireModel


def decode_command(delivery: Delivery, actor: Actor, max_bytes: int) -> WireModel:
    """The command of a delivery.

    Raises PermanentError: `signature-missing`, `signature-invalid`, `reply-to-refused`, `message-too-large`,
    `unknown-version`, `invalid-json`, `invalid-message`, `id-refused` or `unknown-step`.
    """
    _check_publisher(delivery)
    check_size(delivery.body, max_bytes)
    if delivery.type and delivery.type.startswith(f"{actor.step}.v") and delivery.type != message_type(actor.step):
        raise PermanentError("unknown-version", f"this worker reads {message_type(actor.step)}, the message is {delivery.type}")
    try:
        command = actor.command.model_validate_json(storable_json(delivery.body))
    except ValidationError as error:
        code = "invalid-json" if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid" else "invalid-message"
        raise PermanentError(code, validation_problems(error)) from None
    if delivery.refused_id:
        raise PermanentError("id-refused", f"the property or header {delivery.refused_id} is no id: {ID_RULE}")
    _check_itinerary(getattr(command, "slip", None))
    return command


def check_size(body: bytes, max_bytes: int) -> None:
    """Raises PermanentError("message-too-large"), before the body is parsed."""
    if len(body) > max_bytes:
        message = f"the body has {len(body)} bytes, the limit is {max_bytes}: put bytes in the store and send a claim"
        raise PermanentError("message-too-large", message)


def _check_publisher(delivery: Delivery) -> None:
    if delivery.signature_fault:
        raise PermanentError(delivery.signature_fault, FAULT_MESSAGES[delivery.signature_fault])
    if delivery.refused_reply_to:
        raise PermanentError(
            "reply-to-refused",
            f"reply_to is {delivery.refused_reply_to!r}: name a reply queue, which begins with one of {', '.join(REPLY_QUEUE_PREFIXES)}",
        )


def _check_itinerary(slip: Slip | None) -> None:
    for slip_step in reachable_steps(slip) if slip else ():
        if slip_step.step not in COMMANDS:
            raise PermanentError("unknown-step", f"the slip names {slip_step.step!r}; the steps are {', '.join(sorted(COMMANDS))}")
