"""Calls a function in a process that is killed when one call takes too long, so that a hostile input cannot hang the tests."""

import multiprocessing
import resource
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("spawn")


def call_each(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, seconds: float, memory_bytes: int = 0) -> Iterator[Any]:
    """The result of each call; an exception that it raised, or TimeoutError for a call that was killed, in place of a result.

    `memory_bytes`: the address space of the process; 0: not limited.
    """
    done = 0
    while done < len(calls):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_work, args=(sender, function, calls[done:], memory_bytes), daemon=True)
        process.start()
        sender.close()
        try:
            for _ in range(len(calls) - done):
                done += 1
                yield _receive(receiver, seconds)
        except TimeoutError as error:
            yield error
        finally:
            process.kill()
            process.join()
            receiver.close()


def _receive(receiver: Connection, seconds: float) -> Any:
    if not receiver.poll(seconds + 20):  # the first result waits for the imports, too
        raise TimeoutError(f"killed after {seconds:g} s")
    try:
        return receiver.recv()
    except EOFError:
        raise TimeoutError("the process died") from None


def _work(sender: Connection, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], memory_bytes: int) -> None:
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for arguments in calls:
        try:
            result = function(*arguments)
        except Exception as error:
            result = error
        sender.send(result)
