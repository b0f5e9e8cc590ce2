"""`atelier models train-tiny`, with a few steps of each training: what it writes is what the package holds, file by file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ops.local.tiny_models import CHECKPOINTS
from training.model_cards import critic_card, shapes_card, writer_card

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]


CARDS: dict[str, Callable[[dict[str, Any]], str]] = {"tiny-shapes": shapes_card, "tiny-critic": critic_card, "tiny-writer": writer_card}


@pytest.mark.parametrize("name", CARDS)
def test_training_writes_packaged_files(name: str, tmp_path: Path) -> None:
    """File by file and tensor by tensor, with a card that tells the figures of its run; the painter with its styles."""
    figures = made(name, tmp_path)["figures"]
    assert (tmp_path / name / "README.md").read_text() == CARDS[name](figures)
    written = files(tmp_path)
    assert {file.parts[0] for file in written} == ({name, "loras"} if name == "tiny-shapes" else {name})
    assert written == {file for file in files(CHECKPOINTS) if file.parts[0] in {part.parts[0] for part in written}}
    for file in written:
        if file.suffix == ".safetensors":
            assert tensors(tmp_path / file) == tensors(CHECKPOINTS / file), file


def test_unknown_model_is_rejected_by_name(tmp_path: Path) -> None:
    done = train("tiny-poet", tmp_path)
    assert done.returncode == 1
    assert "tiny-poet; there are tiny-shapes, tiny-critic, tiny-writer" in done.stderr


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


def test_packaged_card_matches_template() -> None:
    card = (CHECKPOINTS / "tiny-shapes" / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("| ") and "%" in line]
    assert len(rows) == 6
    plain = [int(row.split("|")[3].strip().rstrip("%")) for row in rows if "| none |" in row]
    assert min(plain) >= 90
