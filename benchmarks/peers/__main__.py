"""The sender or the worker of one peer.

Both read their `PeerConfig` as a JSON line. A sender then reads workloads as JSON lines and prints the times of each; a worker prints the
time at which a workload is complete.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from importlib import import_module

from benchmarks.peers import OWN_MODULES, PEERS
from benchmarks.peers.workload import PeerConfig, Workload
from benchmarks.unpatched import require_unpatched_libraries


async def main(name: str, role: str, config: PeerConfig) -> None:
    module = import_module(f"benchmarks.peers.{PEERS[name].module}")
    if role == "worker":
        async with module.open_worker(config):
            check_libraries(name)
            print_line("ready")
            await asyncio.Event().wait()
    async with module.open_sender(config) as sender:
        check_libraries(name)
        print_line("ready")
        async for line in read_lines():
            workload = Workload(**json.loads(line))
            began = time.monotonic()
            await getattr(sender, workload.mode)(workload)
            print_line(began=began, ended=time.monotonic())


def check_libraries(name: str) -> None:
    """Raises PatchedLibraryError when the libraries in the process of a peer have patches of the bus."""
    if PEERS[name].module not in OWN_MODULES:
        require_unpatched_libraries()


def print_line(text: str = "", **times: float) -> None:
    sys.stdout.write((text or json.dumps(times)) + "\n")
    sys.stdout.flush()


async def read_lines() -> AsyncIterator[str]:
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], PeerConfig(**json.loads(sys.stdin.readline()))))
