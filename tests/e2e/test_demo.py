"""`atelier demo` in a process of its own, with private services and the tiny models."""

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


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """With as many threads of torch as a user's, not the one of other tests."""
    environment = os.environ | {"ATELIER_LOCAL_FOLDER": str(folder), "ATELIER_MAY_INSTALL": "false"}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "ops.cli", "demo", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=380, check=False)


def test_demo_generates_watermarks_uploads_and_calls_webhook() -> None:
    """Prints one JSON document that describes the picture; the picture shows the prompt; the webhooks are in order."""
    with TemporaryDirectory(prefix="atelier-demo-") as folder:
        completed = run_demo(Path(folder), "--json", "--artist", "김작가", "--prompt", "파란 배경에 노란 별", "--size", "512x512")
        assert completed.returncode == 0, completed.stderr[-3000:]
        report = json.loads(completed.stdout)
        picture = Path(report["image_path"])
        assert hashlib.sha256(picture.read_bytes()).hexdigest() == report["sha256"]
        with Image.open(picture) as opened:
            assert opened.size == (report["width"], report["height"]) == (512, 512)
            assert opened.text["artist"] == "김작가"  # type: ignore[attr-defined]
            detected = detect_scene(np.asarray(opened.convert("RGB")))
        assert (detected.colour, detected.ground) == ("yellow", "blue")
    assert report["ok"] is True
    assert [step["step"] for step in report["steps"]] == ["image", "watermark", "upload", "webhook"]
    percents = [call["percent"] for call in report["webhooks"] if "percent" in call]
    assert percents == sorted(set(percents))
    assert report["webhooks"][-1] == {"method": "POST", "path": "/api/webhooks/inference/complete"}
    expected = ["start", "models", "services", "workers", "image", "watermark", "upload", "webhook", "stop"]
    assert list(report["phases"]) == expected
    assert sum(report["phases"].values()) == pytest.approx(report["seconds"], abs=0.001)


def test_failed_demo_order_reports_fault() -> None:
    """Exit status 1, the code of the fault, and the webhook `failed`."""
    with TemporaryDirectory(prefix="atelier-demo-") as folder:
        completed = run_demo(Path(folder), "--json", "--count", "7")
        assert completed.returncode == 1, completed.stderr[-3000:]
        report = json.loads(completed.stdout)
    assert (report["ok"], report["fault"]["code"]) == (False, "invalid-count")
    assert report["webhooks"] == [{"method": "POST", "path": "/api/webhooks/inference/failed"}]
    assert list(report["phases"]) == ["start", "models", "services", "workers", "image_generation", "webhook", "stop"]


def test_demo_generates_ad() -> None:
    """The steps from text to webhook; the copy matches the scene of the prompt, and the verdict is valid."""
    scene = Scene("heart", "red", "white")
    with TemporaryDirectory(prefix="atelier-demo-") as folder:
        completed = run_demo(Path(folder), "--ad", "--json", "--prompt", scene.captions[4])
        assert completed.returncode == 0, completed.stderr[-3000:]
        report = json.loads(completed.stdout)
        with Image.open(report["image_path"]) as opened:
            detected = detect_scene(np.asarray(opened.convert("RGB")))
    assert detected.ground == "white"
    assert [step["step"] for step in report["steps"]][:2] == ["text", "image"]
    assert [step["step"] for step in report["steps"]][-6:] == ["validate", "overlay", "judge", "watermark", "upload", "webhook"]
    assert report["ad"]["text"] in slogans(scene, korean=True)
    assert report["ad"]["is_valid"] is True
    assert report["ad"]["toy_critic"] == "tiny-critic"
    assert report["ad"]["contrast_ratio"] >= 3
    assert report["webhooks"][-1] == {"method": "POST", "path": "/api/webhooks/inference/complete"}
