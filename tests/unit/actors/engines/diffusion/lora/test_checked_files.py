"""What the check of LoRA files costs the thread that steps the rows: little for the worst header, nothing for a file that it knows."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from actors.engines.diffusion.lora import checked_files
from actors.engines.diffusion.lora.checked_files import CheckedFiles
from actors.engines.diffusion.lora.layers import LayerTable
from actors.engines.diffusion.lora.strength import HEADER_KEY, MAX_HEADER_CONFIG_CHARACTERS
from actors.engines.diffusion.lora.validation import MAX_HEADER_BYTES, MAX_KEY_CHARACTERS, MAX_TENSORS
from actors.engines.diffusion.requests import LoraFile
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError
from tests.support.lora_files import lora_pair, write_safetensors
from tests.unit.actors.engines.diffusion.lora.test_rows import net_family

pytestmark = pytest.mark.models

CPU_SECONDS = 0.3


def lora_file(path: Path) -> LoraFile:
    return LoraFile(path, path.name, 1.0, f"s3://b/{path.name}")


def make_checker() -> CheckedFiles:
    return CheckedFiles(ImageSettings())


def fitting_file(path: Path, outputs: int = 18) -> LoraFile:
    return lora_file(write_safetensors(path, {"wide.lora_A.weight": ("F32", [2, 12]), "wide.lora_B.weight": ("F32", [outputs, 2])}))


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    read: list[Path] = []
    validate = checked_files.validate_lora

    def count(file: Path, *arguments: Any, **options: Any) -> Any:
        read.append(file)
        return validate(file, *arguments, **options)

    monkeypatch.setattr(checked_files, "validate_lora", count)
    return read


def test_each_file_is_read_once_for_each_model(tmp_path: Path, validated: list[Path]) -> None:
    checker, layers = make_checker(), LayerTable(net_family())
    one, two = fitting_file(tmp_path / "one"), fitting_file(tmp_path / "two")
    for _ in range(3):
        for file in (one, two, one):
            checker.check(file, "model", layers)
    assert validated == [one.path, two.path]
    checker.check(one, "model", None)
    checker.check(one, "other", layers)
    checker.check(one, "other", layers)
    assert validated == [one.path, two.path, one.path, one.path]


def test_refused_file_is_refused_each_time(tmp_path: Path, validated: list[Path]) -> None:
    checker, layers, file = make_checker(), LayerTable(net_family()), fitting_file(tmp_path / "wrong", outputs=17)
    checker.check(file, "model", None)
    for number in (2, 3):
        with pytest.raises(PermanentError, match="do not fit their layer"):
            checker.check(file, "model", layers)
        assert len(validated) == number, "that it is valid for an unknown model does not count"


def test_file_that_left_the_cache_is_temporary(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="IMAGE_LORA_CACHE_BYTES") as raised:
        make_checker().check(lora_file(tmp_path / "gone"), "model", None)
    assert raised.value.code == "lora-gone"


def test_remembered_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_files, "MAX_CHECKED", 2)
    checker = make_checker()
    for number in range(4):
        checker.check(fitting_file(tmp_path / str(number)), "model", None)
    assert len(checker._passed) == 2


def write_header(path: Path, keys: list[str], **fields: Any) -> Path:
    tensors = {key: {"dtype": "F16", "shape": [1, 1], "data_offsets": [2 * n, 2 * n + 2]} for n, key in enumerate(keys)}
    header = json.dumps(fields | tensors, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * (2 * len(keys)))
    return path


def dotted_keys(count: int, characters: int) -> list[str]:
    ends = [f".{number}.lora_{half}.weight" for number in range(count // 2) for half in "AB"]
    return ["." * (characters - len(end)) + end for end in ends]


def test_worst_header_takes_little_time(tmp_path: Path) -> None:
    """Validated, and matched against the names of a model's layers, none of which it has."""
    fields = {f"unet.{'.' * 40}{number}": 1 for number in range(15_000)}
    config = json.dumps(fields | {"unet.r": 1})
    assert 0.8 * MAX_HEADER_CONFIG_CHARACTERS < len(config) <= MAX_HEADER_CONFIG_CHARACTERS
    file = lora_file(write_header(tmp_path / "worst", dotted_keys(MAX_TENSORS, MAX_KEY_CHARACTERS), __metadata__={HEADER_KEY: config}))
    assert 0.8 * MAX_HEADER_BYTES < file.path.stat().st_size < MAX_HEADER_BYTES + 2 * MAX_TENSORS + 8
    layers, durations = LayerTable(net_family()), []
    make_checker().check(file, "model", None)
    for _ in range(5):
        start = time.thread_time()
        with pytest.raises(PermanentError, match="no layer for any of its 5000 layers"):
            make_checker().check(file, "model", layers)
        durations.append(time.thread_time() - start)
    assert min(durations) < CPU_SECONDS


def test_what_makes_a_header_costly_is_refused(tmp_path: Path) -> None:
    pair = list(lora_pair())
    for path, reason in (
        (write_header(tmp_path / "keys", dotted_keys(2, MAX_KEY_CHARACTERS + 1)), "has 257 characters, the limit is 256"),
        (write_header(tmp_path / "many", dotted_keys(MAX_TENSORS + 2, 60)), "it has 10002 tensors; expected are 1 to 10000"),
        (write_header(tmp_path / "long", pair, __metadata__={"a": "b" * MAX_HEADER_BYTES}), "the limit is 4194304"),
        (write_header(tmp_path / "lists", pair, __metadata__={"a": [[]] * 10_000}), "its header is invalid"),
        (write_header(tmp_path / "fields", pair, x={"dtype": "F16", "shape": [], "data_offsets": [0, 2], "y": [[]]}), "header is invalid"),
        (
            write_header(tmp_path / "config", pair, __metadata__={HEADER_KEY: " " * (MAX_HEADER_CONFIG_CHARACTERS + 1)}),
            "is longer than 1048576 characters",
        ),
    ):
        with pytest.raises(PermanentError, match=reason) as raised:
            make_checker().check(lora_file(path), "model", None)
        assert raised.value.code == "lora-invalid"
