"""What a message must be to be worked on: of a size, a version and a schema, with an itinerary of known steps."""

from pydantic import ValidationError

from bus.actor import Actor
from bus.delivery import Delivery
from bus.errors import PermanentError
from contracts.slip import Slip, reachable_steps
from contracts.steps import COMMANDS
from contracts.wire import message_type
from contracts.wire_model import WireModel


def decode_command(delivery: Delivery, actor: Actor, max_bytes: int) -> WireModel:
    """The command in a message. Raises PermanentError with a code that says what is wrong with it."""
    if len(delivery.body) > max_bytes:
        raise PermanentError(
            "message-too-large",
            f"the body has {len(delivery.body)} bytes, the limit is {max_bytes}: put bytes in the store and send a claim",
        )
    if delivery.type and delivery.type.startswith(f"{actor.step}.v") and delivery.type != message_type(actor.step):
        raise PermanentError("unknown-version", f"this worker reads {message_type(actor.step)}, the message says {delivery.type}")
    try:
        command = actor.command.model_validate_json(delivery.body)
    except ValidationError as error:
        raise PermanentError(*_describe_validation_error(error)) from None
    _check_itinerary(getattr(command, "slip", None))
    return command


def _describe_validation_error(error: ValidationError) -> tuple[str, str]:
    problems = error.errors(include_url=False, include_input=False)
    code = "invalid-json" if problems[0]["type"] == "json_invalid" else "invalid-message"
    return code, "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}" for problem in problems[:10])


def _check_itinerary(slip: Slip | None) -> None:
    for stop in reachable_steps(slip) if slip else ():
        if stop.step not in COMMANDS:
            raise PermanentError("unknown-step", f"the slip names {stop.step!r}; the steps are {', '.join(sorted(COMMANDS))}")
