"""A decoder process: receives one file after another, and answers each with what it decoded or with the reason why it cannot.

`python -m actors.decoding.process FD` serves the socket FD until it is closed. Each job has its own limits: the kernel ends the process
when a job has used its CPU seconds, and an allocation above its memory limit fails.
"""

import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.decoding.protocol import Refused, receive_frame, send_frame

Decoded = tuple[dict[str, Any], bytes]
RETIREMENT_BYTES = 384 << 20
"""A process whose memory has been larger ends after its answer, because freed memory may stay with it."""
MAX_FILE_BYTES = 1 << 30
PROCESS_STATUS = Path("/proc/self/status")


def load_decoder(job: str) -> Callable[..., Decoded]:
    """The decoders are imported when they are first needed, which the limits of a job do not count."""
    match job:
        case "picture":
            from actors.decoding.pictures import read_picture

            return read_picture
        case "picture-frames":
            from actors.decoding.picture_frames import read_frames

            return read_frames
        case "document":
            from actors.attachments.document_reader import read_document

            return lambda data, **arguments: ({}, read_document(data, **arguments).encode(errors="replace"))
        case "json-schema":
            from actors.decoding.json_schemas import check

            return lambda data, **arguments: (check(data, **arguments), b"")
        case "text-lines":
            from actors.vision.ocr_reader import read_lines

            return read_lines
    raise ValueError(f"there is no decoder for {job!r}")


def answer(request: dict[str, Any], data: bytes) -> Decoded:
    """What was decoded, or `code` and `message`. Recursion and memory have a limit of their own, so they say that a file is too complex."""
    try:
        decode = load_decoder(request["job"])
        limit_job(request["cpu_seconds"], request["memory_bytes"])
        return decode(data, **request["arguments"])
    except Refused as error:
        return {"code": error.code, "message": str(error)}, b""
    except (MemoryError, RecursionError):
        return {"too_costly": f"more than {request['memory_bytes'] >> 20} MiB of memory or too many levels"}, b""
    except Exception as error:  # Decoders may raise anything for a malicious file.
        return {"broken": f"{type(error).__name__}: {error}"[:500]}, b""
    finally:
        limit_job(0, resource.RLIM_INFINITY)


def limit_job(cpu_seconds: float, memory_bytes: int) -> None:
    """The timer's signal has no handler: it ends the process, also inside a library that never returns to Python. 0 stops the timer."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    allowed = [limit for limit in (memory_bytes, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(allowed, default=resource.RLIM_INFINITY), hard))


def main() -> None:
    logging.disable()  # pypdf may log a warning for every byte of a damaged file.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the pool ends its processes itself.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)


def serve(connection: socket.socket) -> None:
    send_frame(connection, {}, b"")  # ready: the time limit of the first job does not count the start
    while True:
        try:
            request, data = receive_frame(connection, MAX_FILE_BYTES)
        except (EOFError, ConnectionError):
            return
        header, body = answer(request, bytes(data))
        retires = peak_bytes() > (request["retirement_bytes"] or RETIREMENT_BYTES)
        send_frame(connection, header | {"retires": retires}, body)
        if retires:
            return


def peak_bytes() -> int:
    """The most memory that this process has used. Not `ru_maxrss`: Linux starts that one at the peak of the parent."""
    for line in PROCESS_STATUS.read_text().splitlines() if PROCESS_STATUS.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


if __name__ == "__main__":
    main()
