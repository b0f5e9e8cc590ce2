"""`atelier models train-tiny` with a few steps of each training: it writes the same files as the packaged checkpoints."""

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
    """The same files and tensors, and a model card with the figures of the run; tiny-shapes with its style LoRAs."""
    figures = train_successfully(name, tmp_path)["figures"]
    assert (tmp_path / name / "README.md").read_text() == CARDS[name](figures)
    written = files(tmp_path)
    assert {file.parts[0] for file in written} == ({name, "loras"} if name == "tiny-shapes" else {name})
    assert written == {file for file in files(CHECKPOINTS) if file.parts[0] in {part.parts[0] for part in written}}
    for file in written:
        if file.suffix == ".safetensors":
            assert tensors(tmp_path / file) == tensors(CHECKPOINTS / file), file


def test_unknown_model_is_rejected_by_name(tmp_path: Path) -> None:
    completed = train("tiny-poet", tmp_path)
    assert completed.returncode == 1
    assert "tiny-poet; there are tiny-shapes, tiny-critic, tiny-writer" in completed.stderr


def train_successfully(name: str, folder: Path) -> dict[str, Any]:
    completed = train(name, folder)
    assert completed.returncode == 0, completed.stderr[-3000:]
    report: dict[str, Any] = json.loads(completed.stdout)[name]
    return report


def train(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A training of one step."""
    arguments = ["models", "train-tiny", name, "--folder", str(folder), "--share", "0.0005", "--pictures", "1", "--json"]
    command = [sys.executable, "-m", "ops.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def files(folder: Path) -> set[Path]:
    """Relative paths, without the state of an unfinished training."""
    paths = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    return {file for file in paths if not file.parts[0].startswith(".")}


def tensors(file: Path) -> dict[str, tuple[list[int], str]]:
    with safe_open(file, framework="pt") as weights:
        return {name: (weights.get_slice(name).get_shape(), weights.get_slice(name).get_dtype()) for name in weights.keys()}  # noqa: SIM118


def test_packaged_card_matches_template() -> None:
    card = (CHECKPOINTS / "tiny-shapes" / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("| ") and "%" in line]
    assert len(rows) == 6
    unstyled = [int(row.split("|")[3].strip().rstrip("%")) for row in rows if "| none |" in row]
    assert min(unstyled) >= 90
