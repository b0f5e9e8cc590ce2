"""`atelier models check`: what a folder is and what fits it, and the cause where nothing can serve it; hostile folders are bounded."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from actors.engines.language.families.registry import BY_MODEL_TYPE
from actors.engines.language.tiny_vision import TINY_VISION
from ops.cli import main
from ops.commands import model_check, model_report
from ops.commands.model_check import examine_model, format_report
from ops.errors import SetupError

pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip


FAMILIES = {
    "tiny-sd15": ("Stable Diffusion", "unet", ["control", "img2img", "inpaint"], 64),
    "tiny-sd15-inpaint": ("Stable Diffusion", "unet", ["inpaint"], 64),
    "tiny-sdxl": ("Stable Diffusion XL", "unet", ["control", "img2img", "inpaint"], 64),
    "tiny-sd3": ("Stable Diffusion 3", "transformer", ["img2img", "inpaint"], 64),
    "tiny-flux": ("Flux", "transformer", ["img2img", "inpaint"], 1024),
    "tiny-qwen-image": ("Qwen-Image", "transformer", ["img2img", "inpaint"], 1024),
    "tiny-z-image": ("Z-Image", "transformer", ["img2img", "inpaint"], 1024),
    "tiny-pixart-sigma": ("PixArt-Σ", "transformer", [], 64),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_described_without_reading_weights(tiny_checkpoints: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    monkeypatch.setattr(safetensors.torch, "load_file", pytest.fail)
    monkeypatch.setattr("safetensors.safe_open", pytest.fail)
    family, denoiser, edits, side = FAMILIES[name]

    report = examine_model(tiny_checkpoints / name, [])

    assert (report["fits"], report["problem"], report["kind"]) == (True, None, "image model")
    assert report["family"].startswith(family)
    assert set(edits) <= set(report["edits"])
    assert report["text_to_image"] == (name != "tiny-sd15-inpaint")
    assert (report["defaults"]["width"], report["defaults"]["height"]) == (side, side)
    assert report["defaults"]["scheduler"] in report["schedulers"]
    memory = report["memory_bytes"]
    assert memory["float32"]["total"] == sum(size for part, size in memory["float32"].items() if part != "total")
    weights = sum(tensor.size for file in (tiny_checkpoints / name / denoiser).glob("*.safetensors") for tensor in load_file(file).values())
    assert memory["float32"][denoiser] == 4 * weights
    assert memory["bfloat16"][denoiser] >= 2 * weights


def test_loras_of_a_folder_fit_or_say_why_not(tiny_checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loras = tiny_checkpoints / "loras"

    status = main(["models", "check", str(tiny_checkpoints / "tiny-sd"), "--loras", str(loras), "--json"])

    report = json.loads(capsys.readouterr().out)
    fits = {Path(lora["file"]).stem: lora["fits"] for lora in report["loras"]}
    assert fits == {f"tiny-lora-{name}": True for name in "abc"} | {"tiny-ink": False, "tiny-night": False, "tiny-neat": False}
    assert all("another model" in lora["problem"] for lora in report["loras"] if not lora["fits"])
    assert (report["fits"], status) == (True, 1)


def test_one_lora_file_that_fits_is_status_0_and_text(tiny_checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = tiny_checkpoints / "loras" / "tiny-lora-a.safetensors"

    assert main(["models", "check", str(tiny_checkpoints / "tiny-sd"), "--loras", str(lora)]) == 0

    text = capsys.readouterr().out
    assert "Stable Diffusion, image model (StableDiffusionPipeline)" in text
    assert "1 of 1 fit" in text
    assert "fits: LoRA of rank 4 on" in text


@pytest.mark.parametrize(
    ("name", "kind", "model"),
    [
        ("tiny-llama", "language model", "LlamaForCausalLM"),
        ("tiny-llava", "vision-language model", "LlavaForConditionalGeneration"),
        ("tiny-sd15-controlnet", "ControlNet", "ControlNetModel"),
        ("tiny-sdxl-controlnet", "ControlNet", "ControlNetModel"),
    ],
)
def test_other_models_are_named_with_their_memory(tiny_checkpoints: Path, name: str, kind: str, model: str) -> None:
    report = examine_model(tiny_checkpoints / name, [])

    assert (report["fits"], report["kind"], report["class"]) == (True, kind, model)
    assert report["memory_bytes"]["float32"]["total"] == 2 * report["memory_bytes"]["float16"]["total"] > 0
    if kind == "ControlNet":
        assert report["family"] == ("Stable Diffusion XL" if "sdxl" in name else "Stable Diffusion")


@pytest.mark.parametrize("name", ["tiny-llava", *TINY_VISION])
def test_vision_model_is_described_without_its_weights(tiny_checkpoints: Path, tmp_path: Path, name: str) -> None:
    """Only the header of the weights is there."""
    folder = Path(shutil.copytree(tiny_checkpoints / name, tmp_path / name))
    weights = folder / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    size = weights.stat().st_size
    os.truncate(weights, header)
    os.truncate(weights, size)  # a hole instead of the weights

    report = examine_model(folder, [])

    assert (report["fits"], report["kind"]) == (True, "vision-language model"), report
    assert (report["parts"].keys(), report["context_tokens"] >= 8192) == ({"vision", "text"}, True)
    assert report["family"] in {family.name for family in BY_MODEL_TYPE.values()}
    assert f"context     {report['context_tokens']} tokens" in format_report(report)


def test_vision_model_of_another_type_is_refused(tiny_checkpoints: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoints / "tiny-llava", tmp_path / "other"))
    edit_json(folder / "config.json", model_type="mllama", architectures=["MllamaForConditionalGeneration"])
    assert "its model_type mllama (config.json)" in examine_model(folder, [])["problem"]


def test_loras_of_a_language_model_are_refused(tiny_checkpoints: Path) -> None:
    with pytest.raises(SetupError, match="LoRAs that --loras names are for image models"):
        examine_model(tiny_checkpoints / "tiny-llama", [tiny_checkpoints / "loras" / "tiny-lora-a.safetensors"])


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "is no folder"),
    "unsupported": (lambda folder: edit_json(folder / "model_index.json", _class_name="KandinskyPipeline"), "it is a KandinskyPipeline"),
    "huge json": (lambda folder: os.truncate(folder / "model_index.json", 1 << 30), "1,073,741,824 bytes"),
    "deep json": (lambda folder: (folder / "unet/config.json").write_text("[" * 100_000), "unet"),
    "list": (lambda folder: (folder / "model_index.json").write_text("[]"), "not that of a pipeline"),
    "huge config": (lambda folder: os.truncate(folder / "unet/config.json", 5 << 20), "no file of at most"),
    "cyclic link": (lambda folder: (folder / "unet/loop.json").symlink_to("loop.json"), "a loop of links"),
    "broken link": (lambda folder: (folder / "vae/weights").symlink_to("nowhere"), "a link without its target"),
    "pipe": (lambda folder: os.mkfifo(folder / "unet/more.safetensors"), "neither a file nor a folder"),
    "many files": (lambda folder: [(folder / "vae" / f"{number}").write_text("") for number in range(1001)], "more than 1000 files"),
    "no weights": (lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").unlink(), "unet has no weights"),
    "cut weights": (lambda folder: os.truncate(folder / "unet/diffusion_pytorch_model.safetensors", 100), "safetensors"),
    "no part": (lambda folder: shutil.rmtree(folder / "vae"), "vae is no folder"),
    "other class": (
        lambda folder: edit_json(folder / "model_index.json", vae=["diffusers", "DiffusionPipeline"]), "no model, tokenizer or scheduler"
    ),
    "far too large": (lambda folder: edit_json(folder / "unet/config.json", block_out_channels=[1 << 60, 1 << 60]), "the part unet"),
    "other type": (
        lambda folder: edit_json(folder / "tokenizer/tokenizer_config.json", model_max_length="77"), "model_max_length in tokenizer/"
    ),
    "other text width": (lambda folder: edit_json(folder / "unet/config.json", cross_attention_dim=99), "different models"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_cannot_be_served_says_why(
    tiny_checkpoints: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_checkpoints / "tiny-sd15", tmp_path / "model")
    change, cause = DAMAGES[damage]
    change(folder)

    assert main(["models", "check", str(folder)]) == 1

    text = capsys.readouterr().out
    assert "cannot be served" in text
    assert cause in text


def test_work_that_takes_too_long_is_ended(tiny_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_for_ever(*_: object) -> None:
        while True:
            pass

    monkeypatch.setattr(model_check, "LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(model_report, "open_empty_model", build_for_ever)

    report = examine_model(tiny_checkpoints / "tiny-sd15", [])

    assert (report["fits"], report["problem"]) == (False, "it takes longer than 0.2 s")


def test_limit_of_time_holds_for_all_loras_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is still to be examined nothing is known."""

    def validate_for_ever(*_: object, **__: object) -> None:
        monkeypatch.setattr(model_report, "validate_lora", pytest.fail)
        while True:
            pass

    monkeypatch.setattr(model_check, "LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(model_report, "report_model", lambda *_: ({"kind": "image model"}, object()))
    monkeypatch.setattr(model_report, "LayerTable", lambda _: None)
    monkeypatch.setattr(model_report, "validate_lora", validate_for_ever)

    with pytest.raises(SetupError, match=r"takes longer than 0.2 s to examine the model and 2 LoRA files: name fewer"):
        examine_model(Path("model"), [Path("a.safetensors"), Path("b.safetensors")])


def test_what_a_library_raises_is_a_problem_of_the_folder(tiny_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("on meta")

    monkeypatch.setattr(model_report, "model_memory", fail)

    report = examine_model(tiny_checkpoints / "tiny-sd15", [])

    assert (report["fits"], report["problem"]) == (False, "it cannot be examined (NotImplementedError: on meta)")


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([], "FOLDER"),
        (["~nouser/model"], "no home folder of the user that '~nouser/model' names"),
        (["model", "--loras", "~nouser/loras"], "no home folder of the user"),
        (["model", "--loras", "/nonexistent"], "/nonexistent is neither a LoRA file nor a folder"),
    ],
)
def test_arguments_that_are_wrong_are_status_2(arguments: list[str], cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["models", "check", *arguments])

    assert exit_.value.code == 2
    assert cause in capsys.readouterr().err


def test_folder_without_lora_files_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "check", str(tmp_path), "--loras", str(tmp_path)]) == 1

    assert "has no LoRA file" in capsys.readouterr().err


ADAPTER_CONFIGS: dict[str, tuple[bytes, str]] = {
    "of its weights": (b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8}', ""),
    "other method": (b'{"peft_type": "OFT", "r": 4}', "peft_type"),
    "other rank": (b'{"peft_type": "LORA", "r": 16}', "the rank 16, its weights have 4"),
    "no json": (b"{", "adapter_config.json beside it"),
    "large": (b" " * (256 << 10) + b"{}", "larger than 262144 bytes"),
}


@pytest.mark.parametrize("name", ADAPTER_CONFIGS)
def test_configuration_beside_a_lora_is_compared_with_its_weights(tiny_checkpoints: Path, tmp_path: Path, name: str) -> None:
    """As a worker does, which refuses the others."""
    config, problem = ADAPTER_CONFIGS[name]
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(tiny_checkpoints / "loras" / "tiny-lora-a.safetensors")
    save_file({key: value for key, value in tensors.items() if not key.endswith(".alpha")}, file)
    (tmp_path / "adapter_config.json").write_bytes(config)

    (report,) = examine_model(tiny_checkpoints / "tiny-sd", [file])["loras"]

    assert report["fits"] == (not problem)
    assert problem in (report["problem"] or "")


def test_configuration_in_a_header_is_compared_with_its_weights(tiny_checkpoints: Path, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 16, "unet.lora_alpha": 8})}
    save_file(load_file(tiny_checkpoints / "loras" / "tiny-lora-a.safetensors"), file, metadata=metadata)

    (report,) = examine_model(tiny_checkpoints / "tiny-sd", [file])["loras"]

    assert not report["fits"]
    assert "the rank 16, its weights have 4" in report["problem"]


def test_loras_beyond_a_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr(model_check, "MAX_LORA_FILES", 2)
    for number in range(3):
        save_file({"x": np.zeros(1, dtype=np.float32)}, tmp_path / f"{number}.safetensors")

    with pytest.raises(SetupError, match="3 LoRA files"):
        model_check.find_lora_files(tmp_path)
