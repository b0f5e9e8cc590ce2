"""A third-party OpenAI-compatible server: that of transformers, with a tiny model. It knows neither `response_format` nor a context limit.

vLLM's own vision models need torchvision, which has no build for the CPU version of torch.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from actors.engines.language.tiny_llava import write_tiny_llava
from ops.local import daemon

MODEL_ID, COMMIT = "atelier/tiny-llava", "0" * 39 + "1"
START_SECONDS = 420


@contextmanager
def transformers_server(folder: Path, write_model: Callable[[Path], None] = write_tiny_llava) -> Iterator[str]:
    """Start the server; its URL, with `/v1`. The model is in a hub cache in `folder`, so that the server lists it as MODEL_ID."""
    repository = folder / f"models--{MODEL_ID.replace('/', '--')}"
    write_model(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (port,) = daemon.free_ports(1)
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {"HF_HUB_CACHE": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", process, folder / "log.txt")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(f"the server did not start: {log.read_text(errors='replace')[-3000:]}")
