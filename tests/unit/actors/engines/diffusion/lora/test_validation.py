"""LoRA files: which are let near the model. All are made here, byte by byte."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from actors.engines.diffusion.lora.validation import validate_lora
from bus.errors import PermanentError


def write(file: Path, tensors: dict[str, Any], *, body: bytes | None = None) -> Path:
    """A safetensors file of zeros. `tensors`: name → (dtype, shape)."""
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"F16": 2, "BF16": 2, "F32": 4, "I64": 8}[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(head)) + head + (b"\0" * at if body is None else body))
    return file


def pair(rank: int = 4, prefix: str = "unet.mid.to_q", dtype: str = "F32") -> dict[str, Any]:
    return {f"{prefix}.lora_A.weight": (dtype, [rank, 8]), f"{prefix}.lora_B.weight": (dtype, [8, rank])}


def test_three_lora_key_formats_are_accepted(tmp_path: Path) -> None:
    kohya = {
        "lora_unet_mid_to_q.lora_down.weight": ("F16", [2, 8]),
        "lora_unet_mid_to_q.lora_up.weight": ("F16", [8, 2]),
        "lora_unet_mid_to_q.alpha": ("F32", []),
    }
    assert check(write(tmp_path / "k", kohya)).rank == 2
    assert check(write(tmp_path / "d", pair(8))).rank == 8
    shape = check(write(tmp_path / "p", pair(4, "base_model.model.mid.to_q") | pair(6, "text_encoder.q_proj")))
    assert (shape.rank, shape.encodes) == (6, True)


def check(file: Path, **limits: int) -> Any:
    return validate_lora(file, f"s3://b/{file.name}", **{"max_bytes": 1 << 20, "max_rank": 64, **limits})


BROKEN = {
    "a pickle": b"\x80\x04\x95" + b"x" * 100,
    "nothing": b"",
    "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a header that is a list": struct.pack("<Q", 2) + b"[]",
    "a header without tensors": struct.pack("<Q", 2) + b"{}",
    "a tensor without a place": struct.pack("<Q", 19) + b'{"unet.x":{"a":"b"}}'[:19],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_non_safetensors_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path / "broken", content)


def refused(file: Path, content: bytes | None = None, **limits: int) -> str:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PermanentError) as caught:
        check(file, **limits)
    assert caught.value.code == "lora-invalid"
    assert file.name in str(caught.value), "the fault names the file"
    return str(caught.value)


def test_a_file_that_is_cut_short_or_has_a_tail_is_refused(tmp_path: Path) -> None:
    for body in (b"\0" * 10, b"\0" * 257):
        assert "cut short" in refused(write(tmp_path / "cut", pair(), body=body))


def test_size_rank_and_type_are_capped(tmp_path: Path) -> None:
    file = write(tmp_path / "f", pair(32))
    assert "limit is 100" in refused(file, max_bytes=100)
    assert "rank is 32" in refused(file, max_rank=16)
    assert "I64" in refused(write(tmp_path / "i", pair(dtype="I64")))


def test_unknown_keys_are_rejected(tmp_path: Path) -> None:
    assert "vae.x" in refused(write(tmp_path / "v", pair(prefix="vae.x")))
    assert "DoRA" in refused(write(tmp_path / "w", pair() | {"unet.mid.to_q.dora_scale": ("F32", [8])}))
    assert "no LoRA pair" in refused(write(tmp_path / "z", {"unet.mid.alpha": ("F32", [])}))
