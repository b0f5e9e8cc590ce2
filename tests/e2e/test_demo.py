"""`atelier demo` as a person runs it: own parts, real processes, the tiny model."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image

from training.evaluate_shapes import detect_scene
from training.scenes import Scene
from training.slogans import slogans

pytestmark = [pytest.mark.models, pytest.mark.timeout(400)]


def run_demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ATELIER_LOCAL_FOLDER": str(folder)}
    command = [sys.executable, "-m", "ops.cli", "demo", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=380, check=False)


def test_demo_generates_watermarks_uploads_and_calls_webhook() -> None:
    """One JSON document and nothing else; what it says of the picture is true; it shows what was asked; the backend was told in order."""
    with TemporaryDirectory(prefix="atelier-demo-") as folder:
        ended = run_demo(Path(folder), "--json", "--artist", "김작가", "--prompt", "파란 배경에 노란 별", "--size", "512x512")
        assert ended.returncode == 0, ended.stderr[-3000:]
        report = json.loads(ended.stdout)
        picture = Path(report["image_path"])
        assert hashlib.sha256(picture.read_bytes()).hexdigest() == report["sha256"]
        with Image.open(picture) as opened:
            assert opened.size == (report["width"], report["height"]) == (512, 512)
            assert opened.text["artist"] == "김작가"  # type: ignore[attr-defined]
            shown = detect_scene(np.asarray(opened.convert("RGB")))
        assert (shown.colour, shown.ground) == ("yellow", "blue")
    assert report["ok"] is True
    assert [step["step"] for step in report["steps"]] == ["image", "watermark", "upload", "webhook"]
    percents = [call["percent"] for call in report["webhooks"] if "percent" in call]
    assert percents == sorted(set(percents))
    assert report["webhooks"][-1] == {"method": "POST", "path": "/api/webhooks/inference/complete"}


def test_failing_demo_order_reports_error() -> None:
    """Exit status 1, the fault by its code, and the backend told `failed`."""
    with TemporaryDirectory(prefix="atelier-demo-") as folder:
        ended = run_demo(Path(folder), "--json", "--count", "7")
        assert ended.returncode == 1, ended.stderr[-3000:]
        report = json.loads(ended.stdout)
    assert (report["ok"], report["fault"]["code"]) == (False, "invalid-count")
    assert report["webhooks"] == [{"method": "POST", "path": "/api/webhooks/inference/failed"}]


def test_the_demo_makes_an_advertisement() -> None:
    """Written, drawn, looked at, lettered, judged, signed and told; the copy is about what is drawn, and every verdict is a judgement."""
    scene = Scene("heart", "red", "white")
    with TemporaryDirectory(prefix="atelier-demo-") as folder:
        ended = run_demo(Path(folder), "--ad", "--json", "--prompt", scene.captions[4])
        assert ended.returncode == 0, ended.stderr[-3000:]
        report = json.loads(ended.stdout)
        with Image.open(report["image_path"]) as opened:
            shown = detect_scene(np.asarray(opened.convert("RGB")))
    assert shown.ground == "white"
    assert [step["step"] for step in report["steps"]][:2] == ["text", "image"]
    assert [step["step"] for step in report["steps"]][-6:] == ["validate", "overlay", "judge", "watermark", "upload", "webhook"]
    assert report["ad"]["text"] in slogans(scene, korean=True)
    assert report["ad"]["is_valid"] is True
    assert report["ad"]["contrast_ratio"] >= 3
    assert report["webhooks"][-1] == {"method": "POST", "path": "/api/webhooks/inference/complete"}
