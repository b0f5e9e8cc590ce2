"""Validation of LoRA files, which the tests write byte by byte."""

import struct
from pathlib import Path
from typing import Any

import pytest

from actors.engines.diffusion.lora.validation import validate_lora
from bus.errors import PermanentError
from tests.support.lora_files import lora_pair, write_safetensors


def test_three_lora_key_formats_are_accepted(tmp_path: Path) -> None:
    kohya = {
        "lora_unet_mid_to_q.lora_down.weight": ("F16", [2, 8]),
        "lora_unet_mid_to_q.lora_up.weight": ("F16", [8, 2]),
        "lora_unet_mid_to_q.alpha": ("F32", []),
    }
    assert check(write_safetensors(tmp_path / "k", kohya)).rank == 2
    assert check(write_safetensors(tmp_path / "d", lora_pair(8))).rank == 8
    info = check(write_safetensors(tmp_path / "p", lora_pair(4, "base_model.model.mid.to_q") | lora_pair(6, "text_encoder.q_proj")))
    assert (info.rank, info.has_text_encoder) == (6, True)


def check(file: Path, **limits: int) -> Any:
    return validate_lora(file, f"s3://b/{file.name}", **{"max_bytes": 1 << 20, "max_rank": 64, **limits})


BROKEN = {
    "a pickle": b"\x80\x04\x95" + b"x" * 100,
    "an empty file": b"",
    "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "a header that is not JSON": struct.pack("<Q", 4) + b"{{{{",
    "a header that is a list": struct.pack("<Q", 2) + b"[]",
    "a header without tensors": struct.pack("<Q", 2) + b"{}",
    "a tensor without offsets": struct.pack("<Q", 19) + b'{"unet.x":{"a":"b"}}'[:19],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_non_safetensors_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    rejection(tmp_path / "broken", content)


def rejection(file: Path, content: bytes | None = None, **limits: int) -> str:
    """The message with which the file is rejected."""
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PermanentError) as caught:
        check(file, **limits)
    assert caught.value.code == "lora-invalid"
    assert file.name in str(caught.value), "the error names the file"
    return str(caught.value)


def test_file_of_wrong_length_is_rejected(tmp_path: Path) -> None:
    for body in (b"\0" * 10, b"\0" * 257):
        assert "cut short" in rejection(write_safetensors(tmp_path / "cut", lora_pair(), body=body))


def test_size_rank_and_type_are_capped(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / "f", lora_pair(32))
    assert "limit is 100" in rejection(file, max_bytes=100)
    assert "rank is 32" in rejection(file, max_rank=16)
    assert "I64" in rejection(write_safetensors(tmp_path / "i", lora_pair(dtype="I64")))


def test_unknown_keys_are_rejected(tmp_path: Path) -> None:
    assert "vae.x" in rejection(write_safetensors(tmp_path / "v", lora_pair(prefix="vae.x")))
    assert "DoRA" in rejection(write_safetensors(tmp_path / "w", lora_pair() | {"unet.mid.to_q.dora_scale": ("F32", [8])}))
    assert "no LoRA pair" in rejection(write_safetensors(tmp_path / "z", {"unet.mid.alpha": ("F32", [])}))
