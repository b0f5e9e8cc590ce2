"""The errors that decide the outcome of a delivery, and those of publishing.

Exception
├── TemporaryError           may succeed later: retried after a retry delay
├── PermanentError           never succeeds: dead-lettered under its code
├── AttemptInterrupted       the attempt did not run to its end: the delivery is requeued, the attempt does not count
│   └── EngineCrashed        the model process died
├── CallerGone               the receiver of a streamed reply is gone: the delivery is dropped
└── PublishError             the broker did not confirm in time
    └── UnroutableMessage    no queue takes the message

The text of each is without secrets from the start, since it leaves the process in many ways.
"""

from pydantic import ValidationError

from bus.masking import mask_text


class TemporaryError(Exception):
    """The step may succeed later.

    `delay`: seconds to wait at least; None takes the next retry delay. `code`: the fault code if no attempt succeeds.
    """

    def __init__(self, message: str, *, delay: float | None = None, code: str = "attempts-exhausted") -> None:
        super().__init__(mask_text(message))
        self.delay, self.code = delay, code


class PermanentError(Exception):
    """The step never succeeds, however often it is retried. `code` is kebab-case, for machines; `message` names cause and remedy."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(mask_text(message))
        self.code = code

    def __reduce__(self) -> tuple[type["PermanentError"], tuple[object, ...]]:
        """It crosses the pipes of a model process. A subclass with other arguments needs its own."""
        return type(self), (self.code, str(self))


class AttemptInterrupted(Exception):
    """The attempt did not run to its end, for a reason that says nothing about the message."""

    def __init__(self, message: str = "") -> None:
        super().__init__(mask_text(message))


class EngineCrashed(AttemptInterrupted):
    """The model process died during the step. The message is not known to be at fault."""


class CallerGone(Exception):
    """The receiver of a streamed reply is gone, and its reply queue with it."""


class PublishError(Exception):
    """The broker did not accept a message: no confirm within the time limit, or no queue for a command."""

    def __init__(self, message: str = "") -> None:
        super().__init__(mask_text(message))


class UnroutableMessage(PublishError):
    """No queue takes a mandatory message: the actor of its step has never run here, or the queue was deleted."""


def validation_problems(error: ValidationError, *, limit: int = 10, root: str = "body") -> str:
    """The first problems as `field.path: reason; …`, without the values. `root` names the whole message."""
    problems = error.errors(include_url=False, include_input=False)[:limit]
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or root}: {problem['msg']}" for problem in problems)
