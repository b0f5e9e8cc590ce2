"""`atelier models pull org/name` with the hub's own library. The hub itself is a stand-in on loopback, since none can be reached here.

It answers the three questions that the library asks: what the revision holds, a file's head, a file's bytes, from a point on.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.models

COMMIT = "c0ffee" * 6 + "c0de"
# Longer than two of the pieces in which the library writes.
FILES = {"config.json": b'{"model_type": "toy"}', "weights/model.safetensors": os.urandom(24 << 20)}


class FakeHub(BaseHTTPRequestHandler):
    """One model, `someone/toy`. `breaks`: so many answers with bytes end half way."""

    protocol_version = "HTTP/1.1"
    breaks = 0
    ranges: list[str]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/someone/toy/tree/"):
            entries = [{"type": "file", "path": name, "size": len(data), "oid": oid(data)} for name, data in FILES.items()]
            self.send_response(200, json.dumps(entries).encode(), with_body, {"Content-Type": "application/json"})
        elif path.startswith("/api/models/someone/toy"):
            told = {"id": "someone/toy", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            self.send_response(200, json.dumps(told).encode(), with_body, {"Content-Type": "application/json"})
        elif (name := path.removeprefix(f"/someone/toy/resolve/{COMMIT}/")) in FILES:
            self.send_file(FILES[name], with_body)
        else:
            self.send_response(404, b"", with_body, {"X-Error-Code": "RepoNotFound"})

    def send_file(self, data: bytes, with_body: bool) -> None:
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0) if asked else 0
        headers = {"ETag": f'"{oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            type(self).ranges.append(asked)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        half = with_body and len(data) > 1000 and type(self).breaks > 0
        self.send_response(206 if start else 200, data[start:], with_body, headers, half=half)
        if half:
            type(self).breaks -= 1
            self.close_connection = True

    def send_response(self, status: int, body: bytes, with_body: bool, headers: dict[str, str], *, half: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if half else body)

    def log_message(self, *args: object) -> None:
        pass


def oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def fake_hub() -> Iterator[str]:
    FakeHub.breaks, FakeHub.ranges = 0, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pull(hub: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the library reads the hub's address when it is imported."""
    words = [sys.executable, "-m", "ops.cli", "models", "pull", name, "--folder", str(folder / "models"), "--json"]
    own = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}
    return subprocess.run(words, env=os.environ | own, capture_output=True, text=True, timeout=90, check=False)


def held(folder: Path) -> dict[str, bytes]:
    model = next((folder / "models").iterdir())
    return {name: (model / name).read_bytes() for name in FILES}


def test_model_is_pulled_from_hub(fake_hub: str, tmp_path: Path) -> None:
    done = pull(fake_hub, "someone/toy", tmp_path)
    assert done.returncode == 0, done.stderr
    assert held(tmp_path) == FILES
    assert json.loads(done.stdout)["whole"] is True


def test_interrupted_file_is_resumed(fake_hub: str, tmp_path: Path) -> None:
    FakeHub.breaks = 1
    for _ in range(2):  # the library tries again by itself, or the one who asks does
        done = pull(fake_hub, "someone/toy", tmp_path)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert held(tmp_path) == FILES
    assert FakeHub.ranges, "it began again at the beginning"


def test_unknown_hub_model_error_names_remedy(fake_hub: str, tmp_path: Path) -> None:
    done = pull(fake_hub, "someone/else", tmp_path)
    assert done.returncode == 1
    assert "Is the name right" in done.stderr
    assert "Traceback" not in done.stderr
