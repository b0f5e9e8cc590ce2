"""LoRAs are applied as strongly as PEFT applies them: the same adapter folder, drawn by our engine and by a pipeline that PEFT changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.lora.file_cache import LoraFileCache
from actors.engines.diffusion.requests import DiffusionRequest, DiffusionResult, LoraFile
from actors.engines.process.protocol import Failed, Finished
from actors.engines.settings import ImageSettings
from bus.storage.claim_store import ClaimStore
from contracts.image import Lora
from tests.support.engine_fixture import StockPipeline, max_pixel_difference, output_images, run_to_end

pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

TinyModels = dict[str, Path]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
SEED_AND_SIZE: dict[str, Any] = {"prompt": "a lighthouse 등대", "seed": 3, "width": 64, "height": 64, "steps": 8}


def save_adapter(folder: Path, model: Path, **options: Any) -> Path:
    """An adapter as the source system's trainer saves it, `PeftModel.save_pretrained`, with random weights."""
    import torch
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    config = LoraConfig(**({"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": TARGETS} | options))
    adapted = get_peft_model(UNet2DConditionModel.from_pretrained(model / "unet"), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return folder


def draw_with_peft(model: Path, folder: Path) -> list[Any]:
    """The stock pipeline with the adapter loaded by PEFT itself."""
    from peft import PeftModel

    stock = StockPipeline(model)
    stock.pipeline.unet = PeftModel.from_pretrained(stock.pipeline.unet, folder).eval()
    return stock.draw(DiffusionRequest(**SEED_AND_SIZE))


def draw(engine: DiffusionEngine, lora: LoraFile | None) -> tuple[list[Any], dict[str, str]]:
    """The pictures and their metadata."""
    engine.submit(1, DiffusionRequest(**SEED_AND_SIZE, loras=(lora,) if lora else ()))
    event = run_to_end(engine, [1])[1]
    assert isinstance(event, Finished), event
    assert isinstance(event.result, DiffusionResult)
    return output_images(event), event.result.metadata


@pytest.fixture
def loras(claims: ClaimStore, tmp_path: Path) -> LoraFileCache:
    return LoraFileCache(claims, ImageSettings(local_cache=tmp_path / "cache"))


CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "as the trainer of the source system": ({}, "4"),
    "alpha is the rank": ({"lora_alpha": 8}, "1"),
    "rank-stabilized": ({"use_rslora": True, "lora_alpha": 8}, "2.82843"),
    "rank pattern": ({"rank_pattern": {"attn1.to_q": 2, r".*attn2.*to_[kv]": 4}}, "4–16"),
    "alpha pattern": ({"alpha_pattern": {"^up_blocks.*": 8, "to_v": 64}}, "1–8"),
    "both patterns, rank-stabilized": ({"rank_pattern": {"to_k": 16}, "alpha_pattern": {"to_k": 4}, "use_rslora": True}, "1–11.3137"),
}


@pytest.mark.parametrize(("options", "scaling"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
async def test_adapter_is_as_strong_as_in_peft(
    options: dict[str, Any], scaling: str, image_engine: DiffusionEngine, tiny_models: TinyModels, loras: LoraFileCache, tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / "style", tiny_models["tiny-sd"], **options)
    lora = await loras.fetch(Lora(uri=(folder / "adapter_model.safetensors").as_uri()), None)
    pictures, metadata = draw(image_engine, lora)
    assert max_pixel_difference(pictures, draw_with_peft(tiny_models["tiny-sd"], folder)) <= 1
    assert max_pixel_difference(pictures, draw(image_engine, None)[0]) > 8
    assert (metadata["lora_scaling"], metadata["lora_alpha_from"], metadata["lora_scale"]) == (scaling, "adapter_config", "1")


async def test_strength_is_assumed_without_a_configuration(
    image_engine: DiffusionEngine, tiny_models: TinyModels, loras: LoraFileCache, claims: ClaimStore, tmp_path: Path
) -> None:
    """The rank, unless the order or the setting names alpha. A setting does not replace what is known."""
    folder = save_adapter(tmp_path / "style", tiny_models["tiny-sd"])
    lone = tmp_path / "lone" / "adapter_model.safetensors"
    lone.parent.mkdir()
    shutil.copy(folder / lone.name, lone)
    as_peft = draw_with_peft(tiny_models["tiny-sd"], folder)
    with_setting = LoraFileCache(claims, ImageSettings(local_cache=tmp_path / "cache", lora_alpha=32))
    cases = ((loras, None, "assumed"), (loras, 32.0, "order"), (with_setting, None, "setting"), (with_setting, 8.0, "order"))
    for files, alpha, source in cases:
        pictures, metadata = draw(image_engine, await files.fetch(Lora(uri=lone.as_uri(), alpha=alpha), None))
        assert metadata["lora_alpha_from"] == source
        assert (max_pixel_difference(pictures, as_peft) <= 1) == (metadata["lora_scaling"] == "4")
        assert metadata["lora_scaling"] == ("4" if alpha == 32 or source == "setting" else "1")
    known = await with_setting.fetch(Lora(uri=f"{folder.as_uri()}/", alpha=5), None)
    assert draw(image_engine, known)[1]["lora_alpha_from"] == "adapter_config"


async def test_alphas_of_kohya_and_of_the_header_match_stock_pipeline(
    image_engine: DiffusionEngine, stock_pipeline: StockPipeline, tiny_models: TinyModels, loras: LoraFileCache, tmp_path: Path
) -> None:
    """Both say alpha in the weights; a configuration beside them, which belongs to another file, is not read."""
    folder = save_adapter(tmp_path / "style", tiny_models["tiny-sd"])
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{not JSON")
    named = {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}
    save_file(kohya_tensors(named, alpha=24.0), folder / "kohya.safetensors")
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 8, "unet.lora_alpha": 24, "unet.target_modules": TARGETS})}
    save_file({f"unet.{name}": tensor for name, tensor in named.items()}, folder / "header.safetensors", {"format": "pt", **header})
    for name in ("kohya", "header"):
        lora = await loras.fetch(Lora(uri=(folder / f"{name}.safetensors").as_uri()), None)
        pictures, metadata = draw(image_engine, lora)
        assert max_pixel_difference(pictures, stock_pipeline.draw(DiffusionRequest(**SEED_AND_SIZE, loras=(lora,) if lora else ()))) <= 1
        assert (metadata["lora_scaling"], metadata["lora_alpha_from"]) == ("3", "weights"), name


def kohya_tensors(named: dict[str, Any], alpha: float) -> dict[str, Any]:
    import numpy as np

    tensors: dict[str, Any] = {}
    for name, tensor in named.items():
        layer, _, half = name.partition(".lora_")
        kohya = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{kohya}.lora_{'down' if half.startswith('A') else 'up'}.weight"] = tensor
        tensors[f"{kohya}.alpha"] = np.array(alpha, dtype=np.float32)
    return tensors


async def test_configuration_of_other_weights_is_an_error(
    image_engine: DiffusionEngine, tiny_models: TinyModels, loras: LoraFileCache, tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / "style", tiny_models["tiny-sd"])
    config = json.loads((folder / "adapter_config.json").read_text())
    for number, (change, reason) in enumerate(
        (({"r": 16}, "the rank 16, its weights have 8"), ({"alpha_pattern": {"(": 1}}, "expression"))
    ):
        other = shutil.copytree(folder, tmp_path / str(number))
        (other / "adapter_config.json").write_text(json.dumps(config | change))
        image_engine.submit(number, DiffusionRequest(**SEED_AND_SIZE, loras=(await loras.fetch(Lora(uri=f"{other.as_uri()}/"), None),)))
        event = run_to_end(image_engine, [number])[number]
        assert isinstance(event, Failed)
        assert (event.kind, event.code, reason in event.message) == ("permanent", "lora-invalid", True), event
