"""The memory of a checkpoint is counted from the headers of its files: values times the bytes of the dtype that is loaded."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from actors.engines.diffusion.memory import checkpoint_memory, loaded_files, measure_modules, pipeline_modules

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

STABLE_DIFFUSION_15 = {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}
"""Parameters of each part at its real size, as counted by `sum(p.numel() for p in module.parameters())`."""


def write_index(folder: Path, **parts: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **parts}))


def write_headers(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str, value_bytes: int) -> None:
    """A safetensors file of its real length whose values are a hole on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + math.prod(shape) * value_bytes]}
    content = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        stream.truncate(8 + len(content) + end)


def real_size_modules() -> dict[str, Any]:
    """The parts of Stable Diffusion 1.5 without values."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        encoder = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408)
        )
    return {"unet": unet, "text_encoder": encoder, "vae": vae}


def test_stable_diffusion_at_real_size_takes_twice_its_files_when_float16_is_loaded_as_float32(tmp_path: Path) -> None:
    kinds = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    write_index(tmp_path, text_encoder=["transformers", "CLIPTextModel"], **{part: ["diffusers", kind] for part, kind in kinds.items()})
    for part, module in real_size_modules().items():
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        shapes = {key: tuple(value.shape) for key, value in module.named_parameters()}
        write_headers(tmp_path / part / f"{name}.safetensors", shapes, "F16", 2)
    on_disk = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))

    assert checkpoint_memory(tmp_path, "float32") == {part: 4 * values for part, values in STABLE_DIFFUSION_15.items()}
    assert sum(checkpoint_memory(tmp_path, "float32").values()) == pytest.approx(2 * on_disk, rel=0.001)
    assert sum(checkpoint_memory(tmp_path, "float16").values()) == pytest.approx(on_disk, rel=0.001)


def test_a_part_counts_once_whatever_copies_of_its_weights_are_beside_each_other(tmp_path: Path) -> None:
    write_index(tmp_path, unet=["diffusers", "UNet2DConditionModel"], safety_checker=[None, None])  # type: ignore[list-item]
    unet = tmp_path / "unet"
    write_headers(unet / "diffusion_pytorch_model.safetensors", {"a.weight": (10, 10)}, "F16", 2)
    write_headers(unet / "diffusion_pytorch_model.fp16.safetensors", {"a.weight": (10, 10)}, "F16", 2)
    torch.save({"a.weight": torch.zeros(10, 10)}, unet / "diffusion_pytorch_model.bin")
    write_headers(tmp_path / "safety_checker" / "model.safetensors", {"a.weight": (10, 10)}, "F16", 2)

    assert loaded_files(unet) == [unet / "diffusion_pytorch_model.safetensors"]
    assert checkpoint_memory(tmp_path, "float32") == {"unet": 400}


def test_pickles_count_where_a_part_has_nothing_else(tmp_path: Path) -> None:
    write_index(tmp_path, unet=["diffusers", "UNet2DConditionModel"])
    (tmp_path / "unet").mkdir()
    torch.save({"a.weight": torch.zeros(10, 10, dtype=torch.float16), "ids": torch.arange(5)}, tmp_path / "unet" / "pytorch_model.bin")

    assert checkpoint_memory(tmp_path, "float32") == {"unet": 400 + 40}


def test_only_the_shards_that_the_index_names_count(tmp_path: Path) -> None:
    write_index(tmp_path, transformer=["diffusers", "FluxTransformer2DModel"])
    part, stem = tmp_path / "transformer", "diffusion_pytorch_model"
    for name in ("00001-of-00002", "00002-of-00002", "of-an-older-download"):
        write_headers(part / f"{stem}-{name}.safetensors", {f"{name}.weight": (10, 10)}, "BF16", 2)
    names = {f"{name}.weight": f"{stem}-{name}.safetensors" for name in ("00001-of-00002", "00002-of-00002")}
    (part / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    assert checkpoint_memory(tmp_path, "bfloat16") == {"transformer": 400}

    (part / f"{stem}-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"00002-of-00002\.safetensors"):
        checkpoint_memory(tmp_path, "bfloat16")


def test_parts_that_stay_in_float32_count_as_such(tmp_path: Path) -> None:
    write_index(tmp_path, vae=["diffusers", "AutoencoderKL"], text_encoder=["transformers", "T5EncoderModel"])
    write_headers(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", {"a.weight": (10, 10)}, "F16", 2)
    shapes = {"block.0.layer.1.DenseReluDense.wo.weight": (10, 10), "shared.weight": (10, 10)}
    write_headers(tmp_path / "text_encoder" / "model.safetensors", shapes, "F32", 4)

    vae = {"vae": "float32"}
    assert checkpoint_memory(tmp_path, "float16", dtypes=vae) == {"vae": 400, "text_encoder": 400 + 200}
    assert checkpoint_memory(tmp_path, "bfloat16", dtypes=vae) == {"vae": 400, "text_encoder": 400}


def test_quantized_weights_count_as_they_are_kept(tmp_path: Path) -> None:
    write_index(tmp_path, transformer=["diffusers", "FluxTransformer2DModel"], text_encoder_2=["transformers", "T5EncoderModel"])
    write_headers(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", {"a.weight": (64, 64), "a.bias": (64,)}, "BF16", 2)
    save_file({"a.weight": torch.zeros(50, 1, dtype=torch.uint8), "n": torch.zeros(3)}, (tmp_path / "stored").with_suffix(".safetensors"))
    (tmp_path / "text_encoder_2").mkdir()
    (tmp_path / "stored.safetensors").rename(tmp_path / "text_encoder_2" / "model.safetensors")
    (tmp_path / "text_encoder_2" / "config.json").write_text(json.dumps({"quantization_config": {"load_in_4bit": True}}))

    stored = 50 + 3 * 2
    assert checkpoint_memory(tmp_path, "bfloat16") == {"transformer": 64 * 64 * 2 + 128, "text_encoder_2": stored}
    quantized = checkpoint_memory(tmp_path, "bfloat16", quantized={"transformer": "nf4"})
    assert quantized == {"transformer": 64 * 32 + 64 * 64 // 64 * 4 + 128, "text_encoder_2": stored}


def test_a_broken_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model_index"):
        checkpoint_memory(tmp_path, "float32")
    write_index(tmp_path, unet=["diffusers", "UNet2DConditionModel"])
    (tmp_path / "unet").mkdir()
    file = tmp_path / "unet" / "model.safetensors"
    for content in (b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x10\0\0\0\0\0\0\0{"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            checkpoint_memory(tmp_path, "float32")


def test_the_estimate_is_what_the_loaded_pipeline_takes(tiny_models: dict[str, Path]) -> None:
    from diffusers import StableDiffusionPipeline

    folder = tiny_models["tiny-sd"]
    for dtype in ("float32", "float16"):
        pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
        measured = {part: measure_modules([module]) for part, module in pipeline_modules(pipeline).items()}
        estimated = checkpoint_memory(folder, dtype)
        assert estimated.keys() == measured.keys()
        for part, size in measured.items():
            assert size == pytest.approx(estimated[part], abs=2048), part  # position ids and the like are in no file


def test_tied_weights_are_measured_once() -> None:
    first, second = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)
    second.weight = first.weight

    assert measure_modules([first, second]) == 8 * 8 * 4
