"""`atelier models pull org/name` with the hub's library and a fake hub on loopback.

The fake hub supports the three requests of the library: the files of a revision, the HEAD of a file, and its bytes from an offset.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.models

COMMIT = "c0ffee" * 6 + "c0de"
# Longer than two of the chunks in which the library writes.
FILES = {"config.json": b'{"model_type": "toy"}', "weights/model.safetensors": os.urandom(24 << 20)}


class FakeHub(BaseHTTPRequestHandler):
    """Serves one model, `someone/toy`. `break_count`: how many file responses end in the middle."""

    protocol_version = "HTTP/1.1"
    files = FILES
    break_count = 0
    ranges: list[str]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/someone/toy/tree/"):
            entries = [{"type": "file", "path": name, "size": len(data), "oid": git_oid(data)} for name, data in self.files.items()]
            self.send_reply(200, json.dumps(entries).encode(), with_body, {"Content-Type": "application/json"})
        elif path.startswith("/api/models/someone/toy"):
            model = {"id": "someone/toy", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            self.send_reply(200, json.dumps(model).encode(), with_body, {"Content-Type": "application/json"})
        elif (name := re.sub(f"^/someone/toy/resolve/({COMMIT}|main)/", "", path)) in self.files:
            self.send_file(self.files[name], with_body)
        else:
            self.send_reply(404, b"", with_body, {"X-Error-Code": "RepoNotFound"})

    def send_file(self, data: bytes, with_body: bool) -> None:
        requested = self.headers.get("Range", "")
        start = int(requested.removeprefix("bytes=").rstrip("-") or 0) if requested else 0
        headers = {"ETag": f'"{git_oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            type(self).ranges.append(requested)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        is_cut = with_body and len(data) > 1000 and type(self).break_count > 0
        self.send_reply(206 if start else 200, data[start:], with_body, headers, is_cut=is_cut)
        if is_cut:
            type(self).break_count -= 1
            self.close_connection = True

    def send_reply(self, status: int, body: bytes, with_body: bool, headers: dict[str, str], *, is_cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if is_cut else body)

    def log_message(self, *args: object) -> None:
        pass


def git_oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def fake_hub() -> Iterator[str]:
    FakeHub.break_count, FakeHub.ranges, FakeHub.files = 0, [], FILES
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pull(hub: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run_python(hub, folder, "-m", "ops.cli", "models", "pull", name, "--folder", str(folder / "models"), "--json")


def run_python(hub: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a subprocess, because the library reads the address of the hub when it is imported."""
    command = [sys.executable, *arguments]
    overrides = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}
    return subprocess.run(command, env=os.environ | overrides, capture_output=True, text=True, timeout=200, check=False)


def downloaded_files(folder: Path) -> dict[str, bytes]:
    model = next((folder / "models").iterdir())
    return {name: (model / name).read_bytes() for name in FILES}


def test_model_is_pulled_from_hub(fake_hub: str, tmp_path: Path) -> None:
    result = pull(fake_hub, "someone/toy", tmp_path)
    assert result.returncode == 0, result.stderr
    assert downloaded_files(tmp_path) == FILES
    assert json.loads(result.stdout)["whole"] is True


def test_interrupted_file_is_resumed(fake_hub: str, tmp_path: Path) -> None:
    FakeHub.break_count = 1
    for _ in range(2):  # some versions of the library retry by themselves
        result = pull(fake_hub, "someone/toy", tmp_path)
        if result.returncode == 0:
            break
    assert result.returncode == 0, result.stderr
    assert downloaded_files(tmp_path) == FILES
    assert FakeHub.ranges, "the download was not resumed"


def test_unknown_hub_model_error_names_remedy(fake_hub: str, tmp_path: Path) -> None:
    result = pull(fake_hub, "someone/else", tmp_path)
    assert result.returncode == 1
    assert "Is the name right" in result.stderr
    assert "Traceback" not in result.stderr


LOAD_PIPELINE = """
import sys
from pathlib import Path
from actors.engines.diffusion.checkpoint import find_checkpoint
from actors.engines.diffusion.model import load_model
from actors.engines.process.protocol import EngineHost
from actors.engines.settings import ImageSettings

host = EngineHost(lambda *_: None, lambda: None, Path(sys.argv[1]))
pipeline = load_model("someone/toy", "cpu", "bfloat16", ImageSettings(), host).family.pipeline
folder = find_checkpoint("someone/toy")
print("loaded", pipeline.unet.dtype, pipeline.vae.dtype, "found", folder is not None and folder.is_dir())
"""
LOAD_CONTROLNET = """
import sys
from pathlib import Path
from actors.engines.diffusion.controlnets import ControlNets
from actors.engines.process.protocol import EngineHost

nets = ControlNets({"edges": "someone/toy"}, "cpu", "float32", EngineHost(lambda *_: None, lambda: None, Path(sys.argv[1])))
print("size", nets.size_bytes("edges") > 0, "loaded", type(nets.load("edges").net).__name__)
"""


@pytest.mark.timeout(480)
def test_image_model_of_the_hub_is_loaded_like_a_folder(fake_hub: str, tmp_path: Path, tiny_checkpoints: Path) -> None:
    """Also after a download that ended early: the index is there, and a part is not. The VAE of SDXL is kept in float32."""
    FakeHub.files = repository_files(tiny_checkpoints / "tiny-sdxl")
    for _ in range(2):
        loaded = run_python(fake_hub, tmp_path, "-c", LOAD_PIPELINE, str(tmp_path))
        assert "loaded torch.bfloat16 torch.float32 found True" in loaded.stdout, loaded.stderr
        shutil.rmtree(next((tmp_path / "home").rglob("snapshots/*/vae")))


def test_controlnet_of_the_hub_is_loaded(fake_hub: str, tmp_path: Path, tiny_checkpoints: Path) -> None:
    """Its configuration alone is downloaded first, which is no whole ControlNet."""
    FakeHub.files = repository_files(tiny_checkpoints / "tiny-sd15-controlnet")
    loaded = run_python(fake_hub, tmp_path, "-c", LOAD_CONTROLNET, str(tmp_path))
    assert "size True loaded ControlNetModel" in loaded.stdout, loaded.stderr


def repository_files(model: Path) -> dict[str, bytes]:
    """A repository has files that no pipeline needs."""
    files = {file.relative_to(model).as_posix(): file.read_bytes() for file in model.rglob("*") if file.is_file()}
    return files | {"README.md": b"# toy", "model.ckpt": b"weights of another format"}
