"""`atelier models train-tiny`, with a few steps of each training: what it writes is what the package holds, file by file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ops.models import TRAINED

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]


def test_it_makes_the_painter_that_the_package_holds(tmp_path: Path) -> None:
    told = made("tiny-shapes", tmp_path)
    assert {row["style"] for row in told["figures"]["rows"]} == {None, "ink", "night", "neat"}
    assert files(tmp_path) == files(TRAINED)
    for file in files(TRAINED):
        if file.suffix == ".safetensors":
            assert tensors(tmp_path / file) == tensors(TRAINED / file), file


def test_it_makes_a_critic_and_says_how_often_it_is_right(tmp_path: Path) -> None:
    told = made("tiny-critic", tmp_path)
    card = (tmp_path / "tiny-critic" / "README.md").read_text()
    for name, share in told["figures"]["right"].items():
        assert f"| `{name}` | {share:.0%} |" in card


def test_a_model_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    done = train("tiny-poet", tmp_path)
    assert done.returncode == 1
    assert "tiny-poet; there are tiny-shapes, tiny-critic" in done.stderr


def made(name: str, folder: Path) -> dict[str, Any]:
    done = train(name, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout)[name]
    return told


def train(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A training of one step."""
    words = ["models", "train-tiny", name, "--folder", str(folder), "--share", "0.0005", "--pictures", "1", "--json"]
    command = [sys.executable, "-m", "ops.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def files(folder: Path) -> set[Path]:
    """Without what is kept of an unfinished training."""
    found = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    return {file for file in found if not file.parts[0].startswith(".")}


def tensors(file: Path) -> dict[str, tuple[list[int], str]]:
    with safe_open(file, framework="pt") as weights:
        return {name: (weights.get_slice(name).get_shape(), weights.get_slice(name).get_dtype()) for name in weights.keys()}  # noqa: SIM118


def test_the_card_names_the_figures_of_its_run() -> None:
    card = (TRAINED / "tiny-shapes" / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("| ") and "%" in line]
    assert len(rows) == 6
    plain = [int(row.split("|")[3].strip().rstrip("%")) for row in rows if "| none |" in row]
    assert min(plain) >= 90
