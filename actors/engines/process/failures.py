"""The failure of one request by an exception in its work, which ends neither its process nor its neighbours."""

import structlog

from actors.engines.process.protocol import Failed
from bus.errors import PermanentError, TemporaryError

log = structlog.get_logger()


def fail_request(request_id: int, error: Exception) -> Failed:
    """A PermanentError or TemporaryError as it is. The text of any other may quote anything: it stays in the log, where secrets are masked.

    The same work on the same data fails again, so that it is not tried again.
    """
    if isinstance(error, PermanentError):
        return Failed(request_id, "permanent", error.code, str(error), error)
    if isinstance(error, TemporaryError):
        return Failed(request_id, "temporary", error.code, str(error))
    log.error("engine.request_failed", request_id=request_id, exc_info=error)
    cause = f"the model cannot process this request ({type(error).__name__}); the log of the model process has the cause"
    return Failed(request_id, "permanent", "engine-failed", cause)
