"""`atelier models pull` and `tiny`: downloads are resumed, a file with a wrong checksum is rejected; every family has a tiny checkpoint."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ops.cli import main

BYTES = bytes(range(256)) * 8192
SHA = hashlib.sha256(BYTES).hexdigest()


class FileServer(BaseHTTPRequestHandler):
    """Serves one file by ranges; disconnects in the middle of the first `break_after` responses."""

    break_after = 0
    range_starts: list[int] = []  # noqa: RUF012

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        type(self).range_starts.append(start)
        if start >= len(BYTES):
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Length", str(len(BYTES) - start))
        self.end_headers()
        if type(self).break_after:
            type(self).break_after -= 1
            self.wfile.write(BYTES[start : start + len(BYTES) // 4])
            self.close_connection = True
            return
        self.wfile.write(BYTES[start:])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    FileServer.break_after, FileServer.range_starts = 0, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FileServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/style.safetensors"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_pull(*arguments: str) -> int:
    return main(["models", "pull", *arguments])


def test_interrupted_download_is_resumed(url: str, tmp_path: Path) -> None:
    FileServer.break_after = 2
    assert run_pull(url, "--folder", str(tmp_path), "--name", "style", "--sha256", SHA) == 0
    assert (tmp_path / "style/style.safetensors").read_bytes() == BYTES
    assert FileServer.range_starts[0] == 0
    assert 0 < FileServer.range_starts[1] < FileServer.range_starts[2]


def test_existing_file_is_not_fetched_again(url: str, tmp_path: Path) -> None:
    for _ in range(2):
        assert run_pull(url, "--folder", str(tmp_path), "--sha256", SHA) == 0
    assert FileServer.range_starts == [0]


def test_wrong_checksum_is_rejected_and_file_removed(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_pull(url, "--folder", str(tmp_path), "--name", "style", "--sha256", "0" * 64) == 1
    assert "sha256" in capsys.readouterr().err
    assert not list((tmp_path / "style").iterdir())


def test_folder_is_copied_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    (source / "unet").mkdir(parents=True)
    (source / "unet/model.safetensors").write_bytes(BYTES)
    assert run_pull(str(source), "--folder", str(tmp_path / "models"), "--name", "mine", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == len(BYTES)
    (tmp_path / "models/mine/half.part").write_bytes(b"1")
    assert main(["models", "list", "--folder", str(tmp_path / "models"), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["whole"]) == ("mine", False)


def test_unknown_source_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_pull("ftp://somewhere/model", "--folder", str(tmp_path)) == 1
    assert "hub id such as org/name" in capsys.readouterr().err


@pytest.mark.models
def test_tiny_checkpoints_of_all_families_are_written_and_recognized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from actors.engines.diffusion.families.registry import find_family, load_families

    assert main(["models", "tiny", "--families", "--folder", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    paths = {name: Path(path) for name, path in json.loads(output[output.index("{\n") :]).items()}
    checkpoints = [name for name, path in paths.items() if (path / "model_index.json").is_file()]
    assert {find_family(name, paths[name]) for name in checkpoints} == set(load_families())
    assert {name for name in paths if "controlnet" in name} == {"tiny-sd15-controlnet", "tiny-sdxl-controlnet"}
    assert all(path.exists() for path in paths.values())
