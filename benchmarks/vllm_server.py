"""vLLM's own OpenAI-compatible server on a CPU, as a child process, from the environment that `make venv-vllm` makes."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from ops.errors import SetupError
from ops.local import daemon
from ops.settings import inherited_environment

VLLM_PYTHON = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
START_SECONDS = 420
MAX_MODEL_LEN = 512
"""Tokens of prompt and answer together."""
SERVER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
"""One thread, so that a small machine has a core left for the clients."""


@dataclass(frozen=True)
class VllmServer:
    root: str

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    @property
    def port(self) -> int:
        return int(self.root.rpartition(":")[2])

    def metric(self, name: str) -> float:
        """A Prometheus metric of the server, summed over its labels."""
        page = httpx.get(f"{self.root}/metrics").text
        return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} ")))


@contextmanager
def vllm_server(model: Path, log: Path, *, max_model_len: int = MAX_MODEL_LEN, arguments: Sequence[str] = ()) -> Iterator[VllmServer]:
    """Serves the model in a folder as `tiny`. `arguments`: further ones of the command line.

    Raises SetupError when vLLM is not installed or does not start.
    """
    if not VLLM_PYTHON.exists():
        raise SetupError("vLLM is not installed. Run: make venv-vllm")
    (port,) = daemon.free_ports(1)
    command: list[str | Path] = [
        *(VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(max_model_len), "--max-num-seqs", "16", "--enforce-eager"),
        *("--dtype", "bfloat16", "--block-size", "32", "--generation-config", "vllm"),
        *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
        *arguments,
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=inherited_environment() | SERVER_ENVIRONMENT, start_new_session=True
        )
    try:
        server = VllmServer(f"http://127.0.0.1:{port}")
        wait_until_healthy(server, process, log)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_healthy(server: VllmServer, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{server.root}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise SetupError(f"vLLM did not start: {log.read_text(errors='replace')[-3000:]}")
