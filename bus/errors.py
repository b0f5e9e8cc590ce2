"""All that an actor can say about a failure, and what the post itself may meet.

Exception
├── TemporaryError      may work later: tried again on the ladder
├── PermanentError      will never work: buried with its code
├── EngineDead          the model process died: the work goes back, untried
├── Abandoned           whoever awaited the reply is gone: the work ends
└── PublishError        the broker did not confirm in time
    └── NoQueue         there is no queue for it
"""


class TemporaryError(Exception):
    """It may work later. `delay`: seconds to wait at least; None takes the ladder's next rung. `code` names the cause if it never does."""

    def __init__(self, message: str, *, delay: float | None = None, code: str = "attempts-exhausted") -> None:
        super().__init__(message)
        self.delay, self.code = delay, code


class PermanentError(Exception):
    """It will never work, however often it is tried. `code` is kebab-case, for machines; `message` names the cause and the cure."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineCrashed(Exception):
    """The model process died while it held the work. Nothing is wrong with the work itself as far as is known."""


class CallerGone(Exception):
    """Whoever awaited a streamed reply is gone, and its queue with it."""


class PublishError(Exception):
    """The broker did not take a message: no confirm within the time limit, or no queue for a command."""


class UnroutableMessage(PublishError):
    """No queue takes what must arrive: its step's actor has never run here, or the queue is gone."""
