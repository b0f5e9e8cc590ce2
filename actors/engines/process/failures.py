"""Errors in a model process: those of the device, which end it, and those of one request, which end neither it nor its neighbours."""

from typing import Literal

import structlog

from actors.engines.process.protocol import Failed, MemoryExhausted
from bus.errors import PermanentError, TemporaryError
from bus.masking import mask_text

log = structlog.get_logger()

DEVICE_FAILURES = ("cuda error", "cudnn error", "cublas error", "cublas_status", "cudnn_status", "hip error", "device-side assert")


def is_out_of_memory(error: BaseException) -> bool:
    """Python's error, CUDA's, and that of torch when a CPU allocation fails."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return torch_says(error, ("out of memory", "can't allocate memory"))


def is_device_failure(error: BaseException) -> bool:
    """Whether an error says nothing about the request: memory ran out, or the device is lost, which only a new process may mend."""
    if isinstance(error, PermanentError | TemporaryError):
        return False
    if isinstance(error, MemoryExhausted) or is_out_of_memory(error) or type(error).__name__ == "AcceleratorError":
        return True
    return torch_says(error, DEVICE_FAILURES)


def torch_says(error: BaseException, texts: tuple[str, ...]) -> bool:
    """Whether an error of torch, which are plain RuntimeErrors, has one of these texts. Other errors may quote what a client wrote."""
    return type(error) is RuntimeError and any(text in str(error).lower() for text in texts)


def describe_error(error: BaseException, max_chars: int) -> str:
    """The text of an error in one line, or its kind. Secrets are masked before it is cut: half of one is not recognised."""
    return mask_text(" ".join(str(error).split()))[:max_chars] or type(error).__name__


def exit_cause(error: BaseException) -> Literal["memory", "device", "error"]:
    """The cause of an exit with this error. A failed assertion on the device is an `error`: an input may cause it."""
    if isinstance(error, MemoryExhausted) or is_out_of_memory(error):
        return "memory"
    return "device" if is_device_failure(error) and "device-side assert" not in str(error).lower() else "error"


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
