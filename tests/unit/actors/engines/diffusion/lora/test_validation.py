"""Validation of LoRA files, which the tests write byte by byte."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from actors.engines.diffusion.families.unet_layers import original_name
from actors.engines.diffusion.lora.strength import HEADER_KEY
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
    assert (info.rank, info.methods) == (6, ("LoRA",))


F32 = "F32"
METHODS: dict[str, tuple[dict[str, list[int]], str, int]] = {
    "DoRA of PEFT": ({"lora_A.weight": [2, 8], "lora_B.weight": [8, 2], "lora_magnitude_vector": [8]}, "DoRA", 2),
    "DoRA of LyCORIS": ({"lora_down.weight": [2, 8], "lora_up.weight": [8, 2], "dora_scale": [8, 1], "alpha": []}, "DoRA", 2),
    "kernel in the middle": (
        {"lora_down.weight": [2, 8, 1, 1], "lora_mid.weight": [2, 2, 3, 3], "lora_up.weight": [8, 2, 1, 1]},
        "LoRA",
        2,
    ),
    "LoHa": ({"hada_w1_a": [8, 3], "hada_w1_b": [3, 8], "hada_w2_a": [8, 4], "hada_w2_b": [4, 8], "alpha": []}, "LoHa", 4),
    "LoHa, tucker": (
        {
            "hada_t1": [3, 3, 3, 3],
            "hada_w1_a": [3, 8],
            "hada_w1_b": [3, 8],
            "hada_t2": [3, 3, 3, 3],
            "hada_w2_a": [3, 8],
            "hada_w2_b": [3, 8],
        },
        "LoHa",
        3,
    ),
    "LoKr": ({"lokr_w1": [2, 4], "lokr_w2_a": [4, 3], "lokr_w2_b": [3, 2], "alpha": []}, "LoKr", 3),
    "LoKr of whole matrices": ({"lokr_w1": [2, 4], "lokr_w2": [4, 2]}, "LoKr", 0),
    "LoKr, tucker": ({"lokr_w1": [2, 4], "lokr_w2_a": [3, 4], "lokr_w2_b": [3, 2], "lokr_t2": [3, 3, 3, 3]}, "LoKr", 3),
}


def layer_file(path: Path, shapes: dict[str, list[int]], layer: str = "lora_unet_mid_to_q") -> Path:
    return write_safetensors(path, {f"{layer}.{role}": (F32, shape) for role, shape in shapes.items()})


@pytest.mark.parametrize(("shapes", "method", "rank"), METHODS.values(), ids=METHODS)
def test_methods_are_known_by_their_keys(tmp_path: Path, shapes: dict[str, list[int]], method: str, rank: int) -> None:
    info = check(layer_file(tmp_path / "f", shapes))
    assert (info.methods, info.rank) == ((method,), rank)
    for role in shapes.keys() - {"alpha", "lora_magnitude_vector", "dora_scale", "lora_mid.weight"}:
        cut = {name: shape for name, shape in shapes.items() if name != role}
        assert "lora_unet_mid_to_q" in rejection(layer_file(tmp_path / "cut", cut)), role
    if rank:
        assert f"rank is {rank}" in rejection(layer_file(tmp_path / "f", shapes), max_rank=rank - 1)


REFUSED = {
    "oft_blocks": "OFT", "oft_diag": "OFT", "boft_R": "BOFT", "ia3_l": "IA3", "on_input": "IA3", "vera_lambda_b": "VeRA",
    "diff": "full differences", "diff_b": "full differences", "w_norm": "differences of norms", "a1.weight": "GLoRA",
    "lora_embedding_A": "LoRA of embeddings", "lora_B.bias": "LoRA with biases",
}  # fmt: skip


@pytest.mark.parametrize(("role", "method"), REFUSED.items())
def test_other_methods_are_refused_by_name(tmp_path: Path, role: str, method: str) -> None:
    message = rejection(layer_file(tmp_path / "f", {"lora_A.weight": [2, 8], "lora_B.weight": [8, 2], role: [8]}))
    assert f"'lora_unet_mid_to_q.{role}' is of the method {method}, which cannot be applied row by row" in message


def test_methods_do_not_mix_on_one_layer(tmp_path: Path) -> None:
    shapes = METHODS["LoHa"][0] | {"dora_scale": [8, 1]}
    assert "do not go together on one layer" in rejection(layer_file(tmp_path / "f", shapes))


def test_ranks_of_the_two_tensors_of_a_product_are_equal(tmp_path: Path) -> None:
    for name, (shapes, _, rank) in METHODS.items():
        inner = next((role for role in shapes if role in ("lora_A.weight", "lora_down.weight", "hada_w2_b", "lokr_w2_b")), None)
        if inner and rank:
            wrong = shapes | {inner: [shapes[inner][0] + 1, *shapes[inner][1:]]}
            assert f"{inner}' " in rejection(layer_file(tmp_path / "f", wrong)), name
    assert "expected is a matrix" in rejection(layer_file(tmp_path / "f", {"lokr_w1": [2, 0], "lokr_w2": [4, 2]}))


def check(file: Path, **limits: int) -> Any:
    return validate_lora(file, f"s3://b/{file.name}", **{"max_bytes": 1 << 20, "max_rank": 64, **limits})


def tensor_header(tensor: str) -> bytes:
    """A file whose only tensor has this header, and four bytes."""
    header = f'{{"unet.mid.to_q.lora_A.weight":{tensor}}}'.encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 4


HOSTILE_FIELDS = {
    f"{field} {value}": tensor_header(f'{{"dtype":"F32","shape":[1],"data_offsets":[0,4],"{field}":{value}}}')
    for field, values in {
        "shape": ('"abc"', "[null,1]", '{"a":1}', "5", "[1e999,1]", "[-3,1]", "[1.5]", "[true]", "null", "[" * 100 + "]" * 100),
        "data_offsets": ("[0,1e999]", "[0]", "[0,4,8]", '"04"', "null", "[-4,4]"),
        "dtype": ("5", "null", '["F32"]', '"' + "F" * 1000 + '"'),
    }.items()
    for value in values
}
BROKEN = {
    **HOSTILE_FIELDS,
    "a tensor that is a list": tensor_header("[]"),
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
    assert rejection(tmp_path / "broken", content)


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
    assert "'vae.x' belongs to no method" in rejection(write_safetensors(tmp_path / "v", {"vae.x": ("F32", [8])}))
    assert "'unet.mid.alpha' has no down and no up" in rejection(write_safetensors(tmp_path / "z", {"unet.mid.alpha": ("F32", [])}))


def test_alphas_are_known_only_when_every_component_has_them(tmp_path: Path) -> None:
    """A configuration of one component in the header says nothing of the other."""
    both = lora_pair() | lora_pair(4, "text_encoder.q_proj")
    unet = {"unet.r": 4, "unet.lora_alpha": 8}
    for number, (tensors, config, expected) in enumerate([
        (both, unet, False),
        (both, unet | {"text_encoder.r": 4}, True),
        (lora_pair(), unet, True),
        (both | {"text_encoder.q_proj.alpha": ("F32", [])}, unet, True),
        (both | {"text_encoder.q_proj.alpha": ("F32", [])}, {}, False),
    ]):  # fmt: skip
        file = write_safetensors(tmp_path / str(number), tensors)
        if config:
            data = file.read_bytes()
            length = struct.unpack("<Q", data[:8])[0]
            header = json.dumps(json.loads(data[8 : 8 + length]) | {"__metadata__": {HEADER_KEY: json.dumps(config)}}).encode()
            file.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
        assert check(file).has_alphas == expected, number


def test_upsamplers_have_their_names_of_the_first_stable_diffusion() -> None:
    """Of version 1.5: two layers in a block, the first block of the way up without attention."""
    names = [original_name(f"up_blocks.{block}.upsamplers.0.conv", 2, {0}) for block in range(3)]
    assert names == ["output_blocks.2.1.conv", "output_blocks.5.2.conv", "output_blocks.8.2.conv"]
