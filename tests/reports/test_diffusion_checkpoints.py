"""Stable Diffusion checkpoints that are nearly right: the start fails with part, file, field and cure, before any order is drawn; one of
IMAGE_MODELS fails the orders that name it, and a picture that is no numbers is an error.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engines.diffusion.engine import DiffusionEngine, open_engine
from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.process.protocol import Failed, Finished
from actors.engines.settings import ImageSettings
from bus.errors import TemporaryError
from ops.local.tiny_models import make_tiny_models
from tests.support.engine_fixture import run_to_end, silent_host

pytestmark = [
    pytest.mark.models, pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_tiny_models(tmp_path_factory.mktemp("models"))


def edit_json(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({field: value for field, value in content.items() if value is not ...}))


def open_diffusion(model: Path | str, folder: Path, **settings: Any) -> DiffusionEngine:
    folder.mkdir(exist_ok=True)
    return open_engine(ImageSettings(model=str(model), **settings), silent_host(folder))


def other_text_encoder(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.hidden_size, config.intermediate_size = 16, 32
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def unet_of_five_channels(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = dict(UNet2DConditionModel.load_config(folder / "unet")) | {"in_channels": 5}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")


def large_tokenizer(folder: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<sks>", "<cat-toy>"])
    tokenizer.save_pretrained(folder / "tokenizer")


def not_numbers(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = next((folder / part).glob("*.safetensors"))
        weights = load_file(file)
        key = next(name for name in weights if name.endswith(("conv_out.weight", "final_layer_norm.weight")))
        save_file(weights | {key: torch.full_like(weights[key], float("nan"))}, file, {"format": "pt"})

    return change


def without_weight(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = next((folder / part).glob("*.safetensors"))
        weights = load_file(file)
        weights.pop(sorted(weights)[len(weights) // 2])
        save_file(weights, file, {"format": "pt"})

    return change


def edit(file: str, **fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, **fields)


BROKEN_DIFFUSION: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no model_index.json: bitsandbytes-foundation/bitsandbytes #69": (
        lambda folder: (folder / "model_index.json").unlink(),
        "model_index.json does not exist: the folder is not in the format of diffusers",
    ),
    "no scheduler: om-ai-lab/RS5M #16": (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler"),
    "SDXL: AUTOMATIC1111/stable-diffusion-webui #13528": (
        edit("model_index.json", _class_name="StableDiffusionXLPipeline"),
        "it is a StableDiffusionXLPipeline",
    ),
    "for depth, with 5 channels: huggingface/diffusers #6964": (unet_of_five_channels, "reads 5 channels"),
    "text encoder of another model: Comfy-Org/ComfyUI #7264": (other_text_encoder, "cross_attention_dim"),
    "tokenizer of another model: CompVis/stable-diffusion #860": (large_tokenizer, "text_encoder/config.json"),
    "no scaling factor: huggingface/diffusers #7003": (
        edit("vae/config.json", scaling_factor=None),
        "scaling_factor in vae/config.json is None",
    ),
    "weight of the UNet is missing": (without_weight("unet"), "the folder unet: the files lack the weights"),
    "weight of the VAE is missing": (without_weight("vae"), "the folder vae: the files lack the weights"),
    "weight of the text encoder is missing": (
        without_weight("text_encoder"),
        "text_encoder: the files lack the weights",
    ),
    "no noise schedule": (lambda folder: (folder / "scheduler/scheduler_config.json").write_text("{}"), "has no beta_schedule"),
    "no numbers from the UNet: ICTMCG/Make-Your-Anchor #9": (not_numbers("unet"), "the output of its UNet is not finite as float32"),
    "no numbers from the VAE: vladmandic/sdnext #149": (not_numbers("vae"), "the output of the VAE is not finite as float32"),
    "no numbers from the text encoder: guoyww/AnimateDiff #203": (
        not_numbers("text_encoder"),
        "the output of its text encoder is not finite",
    ),
}


@pytest.mark.parametrize(("change", "words"), BROKEN_DIFFUSION.values(), ids=BROKEN_DIFFUSION)
def test_broken_diffusion_checkpoint_is_found_at_start(
    models: dict[str, Path], tmp_path: Path, change: Callable[[Path], Any], words: str
) -> None:
    folder = shutil.copytree(models["tiny-sd"], tmp_path / "model")
    change(folder)
    with pytest.raises(Exception, match=r"the checkpoint .* cannot be used") as raised:
        open_diffusion(folder, tmp_path / "shm")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert getattr(raised.value, "code", "") == "model-unusable"


def test_checkpoint_of_one_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    """showlab/Tune-A-Video #30: a `.ckpt` or `.safetensors` of a model site."""
    with pytest.raises(Exception, match="from_single_file"):
        open_diffusion(tmp_path / "model.safetensors", tmp_path / "shm")


def test_tokenizer_without_limit_gets_that_of_the_text_encoder(models: dict[str, Path], tmp_path: Path) -> None:
    """TencentARC/PhotoMaker #92, cswry/SeeSR #18: `model_max_length` is missing, and so 10³⁰; padding to it is an OverflowError."""
    folder = shutil.copytree(models["tiny-sd"], tmp_path / "model")
    edit_json(folder / "tokenizer/tokenizer_config.json", model_max_length=...)
    engine = open_diffusion(folder, tmp_path / "shm")
    engine.submit(1, DiffusionRequest("x" * 90, 1, width=64, height=64, steps=1))
    event = run_to_end(engine, [1])[1]
    engine.close()
    assert isinstance(event, Finished), event


@pytest.fixture
def broken_beside_sound(models: dict[str, Path], tmp_path: Path) -> Iterator[DiffusionEngine]:
    broken = shutil.copytree(models["tiny-sd"], tmp_path / "broken")
    not_numbers("vae")(broken)
    engine = open_diffusion(models["tiny-sd"], tmp_path / "shm", models={"broken": str(broken)})
    yield engine
    engine.close()


def test_broken_model_fails_only_orders_that_name_it(broken_beside_sound: DiffusionEngine) -> None:
    """AUTOMATIC1111/stable-diffusion-webui #12019: one of several checkpoints draws black. It is found when it is loaded for an order."""
    size: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}
    broken_beside_sound.submit(1, DiffusionRequest("a cat", 1, model="broken", **size))
    broken_beside_sound.submit(2, DiffusionRequest("a cat", 2, **size))
    events = run_to_end(broken_beside_sound, [1, 2])
    assert isinstance(events[1], Failed)
    assert (events[1].kind, events[1].code) == ("temporary", "model-unusable")
    assert "IMAGE_DTYPE" in events[1].message
    assert isinstance(events[2], Finished)
    with pytest.raises(TemporaryError, match="IMAGE_DTYPE") as raised:
        broken_beside_sound.submit(3, DiffusionRequest("a cat", 3, model="broken", **size))
    assert raised.value.code == "model-unusable", "it is not loaded again for each order, which would evict sound models"


def test_picture_that_is_no_numbers_is_an_error_and_not_black(models: dict[str, Path], tmp_path: Path) -> None:
    """instantX-research/InstantStyle-Plus #2, huanngzh/ComfyUI-MVAdapter #14: the VAE overflows for some pictures only."""
    engine = open_diffusion(models["tiny-sd"], tmp_path / "shm")
    vae = engine.models.default().family.pipeline.vae
    decode = vae.decode
    vae.decode = lambda latents, **options: (decode(latents, **options)[0] * float("nan"),)
    engine.submit(1, DiffusionRequest("a cat", 1, width=64, height=64, steps=1))
    event = run_to_end(engine, [1])[1]
    engine.close()
    assert isinstance(event, Failed)
    assert event.code == "picture-not-finite"
    assert "VAE" in event.message
    assert "IMAGE_DTYPE" in event.message
