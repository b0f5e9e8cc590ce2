"""ControlNets in the engine: loaded at the first order that names one, within the memory budget, and only where they fit.

Their pictures are compared with the stock pipelines' in families/.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.engines.diffusion.controlnets import ControlNets, cache_name
from actors.engines.diffusion.engine import DiffusionEngine, open_engine
from actors.engines.diffusion.requests import ControlSource, DiffusionRequest, EditSource, InputPicture
from actors.engines.process.protocol import Failed
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError
from ops.local.tiny_models import make_tiny_families
from tests.support.engine_fixture import draw_images, run_to_end, silent_host

pytestmark = [
    pytest.mark.models, pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

PICTURE = InputPicture("RGB", 64, 64, np.random.default_rng(0).integers(0, 256, 64 * 64 * 3, dtype=np.uint8).tobytes())
NET = "tiny-sd15-controlnet"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_tiny_families(tmp_path_factory.mktemp("models"))


@pytest.fixture
def open_model(folders: dict[str, Path], tmp_path: Path) -> Any:
    """A function that opens an engine with a checkpoint and ControlNets: name → folder."""
    opened: list[DiffusionEngine] = []

    def open_one(checkpoint: str = "tiny-sd15", nets: dict[str, Path] | None = None, **changes: Any) -> DiffusionEngine:
        sources = {"edges": folders[NET]} if nets is None else nets
        settings = ImageSettings(
            model=str(folders[checkpoint]), controlnets={name: str(path) for name, path in sources.items()}, threads=1, **changes
        )
        opened.append(open_engine(settings, silent_host(tmp_path)))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


def order(net: str | None = "edges", **changes: Any) -> DiffusionRequest:
    control = ControlSource(PICTURE, net) if net else None
    return DiffusionRequest("a cat", **{"seed": 1, "width": 64, "height": 64, "steps": 2, "control": control, **changes})


def test_net_is_loaded_at_the_first_order_and_kept(open_model: Callable[..., DiffusionEngine]) -> None:
    engine = open_model()
    [plain] = draw_images(engine, {1: order(None)})[1]
    assert cache_name("edges") not in engine.models.cache.names
    drawn = draw_images(engine, {1: order(), 2: order(None), 3: order(count=2)})
    assert engine.models.cache.loads == 2
    assert np.abs(drawn[1][0] - plain).max() > 20
    assert np.abs(drawn[2][0] - plain).max() <= 1
    assert np.abs(drawn[3][0] - drawn[1][0]).max() <= 1


def test_scale_of_zero_has_no_effect(open_model: Callable[..., DiffusionEngine]) -> None:
    drawn = draw_images(open_model(), {1: order(control=ControlSource(PICTURE, "edges", 0.0)), 2: order(None)})
    assert np.abs(drawn[1][0] - drawn[2][0]).max() <= 1


REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "unknown": ("tiny-sd15", {"net": "pose"}, "control-unknown", "'pose' is not in IMAGE_CONTROLNETS: edges, xl"),
    "of SDXL": ("tiny-sd15", {"net": "xl"}, "control-unfit", "its cross_attention_dim is 64, that of this Stable Diffusion is 32"),
    "of Stable Diffusion": ("tiny-sdxl", {}, "control-unfit", "its cross_attention_dim is 32, that of this Stable Diffusion XL is 64"),
    "beside a picture": ("tiny-sd15", {"edit": EditSource(PICTURE)}, "edit-unsupported", "not both"),
    "a family without": ("tiny-flux", {}, "edit-unsupported", "has no control"),
    "a checkpoint for inpainting": ("tiny-sd15-inpaint", {}, "edit-unsupported", "is for inpainting"),
}


@pytest.mark.parametrize(("checkpoint", "changes", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_order_that_cannot_be_controlled_is_refused_before_the_queue(
    open_model: Callable[..., DiffusionEngine], folders: dict[str, Path], checkpoint: str, changes: dict[str, Any], code: str, words: str
) -> None:
    engine = open_model(checkpoint, {"edges": folders[NET], "xl": folders["tiny-sdxl-controlnet"]})
    with pytest.raises(PermanentError, match=words) as raised:
        engine.submit(1, order(**changes))
    assert raised.value.code == code


def test_net_of_another_model_is_refused_without_reading_its_weights(open_model: Callable[..., DiffusionEngine]) -> None:
    """The model is not in memory when the order arrives."""
    engine = open_model("tiny-sdxl", warm=False)
    engine.submit(1, order())
    event = run_to_end(engine, [1])[1]
    assert isinstance(event, Failed)
    assert (event.kind, event.code) == ("permanent", "control-unfit")
    assert engine.models.cache.loads == 1


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def drop_weight(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    save_file({key: tensor for key, tensor in load_file(file).items() if key != "conv_in.weight"}, file, metadata={"format": "pt"})


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other blocks": (change_config(layers_per_block=3), "its layers_per_block is 3"),
    "other channels": (change_config(in_channels=16), "its in_channels is 16, that of this Stable Diffusion is 4"),
    "a mask beside the picture": (change_config(conditioning_channels=4), "its conditioning_channels is 4"),
    "another VAE": (change_config(conditioning_embedding_out_channels=[4, 8]), "it scales pictures by 2, the VAE by 8"),
}


@pytest.mark.parametrize(("change", "words"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_named(
    open_model: Callable[..., DiffusionEngine], folders: dict[str, Path], tmp_path: Path, change: Callable[[Path], Any], words: str
) -> None:
    folder = shutil.copytree(folders[NET], tmp_path / "net")
    change(folder)
    with pytest.raises(PermanentError, match=words) as raised:
        open_model(nets={"edges": folder}).submit(1, order())
    assert raised.value.code == "control-unfit"


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no config.json"),
    "another kind": (
        change_config(_class_name="ControlNetUnionModel"),
        "it is a ControlNetUnionModel (config.json)",
    ),
    "weights that are missing": (drop_weight, "the files lack the weights conv_in.weight"),
}


@pytest.mark.parametrize(("change", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_net_that_cannot_be_used_fails_only_orders_that_name_it(
    open_model: Callable[..., DiffusionEngine], folders: dict[str, Path], tmp_path: Path, change: Callable[[Path], Any], words: str
) -> None:
    folder = shutil.copytree(folders[NET], tmp_path / "net")
    change(folder)
    engine = open_model(nets={"edges": folder}, warm=False)
    engine.submit(1, order())
    engine.submit(2, order(None))
    events = run_to_end(engine, [1, 2])
    failed = events[1]
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code) == ("temporary", "model-unusable")
    assert words in failed.message
    assert not isinstance(events[2], Failed)


def test_budget_counts_nets_and_evicts_the_one_that_no_order_uses(
    open_model: Callable[..., DiffusionEngine], folders: dict[str, Path]
) -> None:
    engine = open_model(nets={"edges": folders[NET], "pose": folders[NET]}, prompt_cache_bytes=0)
    cache, model_bytes = engine.models.cache, engine.models.cache.used_bytes
    net_bytes = sum(4 * tensor.numel() for file in folders[NET].glob("*.safetensors") for tensor in load_file(file).values())
    draw_images(engine, {1: order()})
    assert cache.used_bytes == model_bytes + net_bytes
    cache.budget_bytes = model_bytes + net_bytes
    draw_images(engine, {1: order("pose"), 2: order("edges"), 3: order("pose")})
    assert cache.loads == 4, "the third order joins the first, and the second waits for its net until they are done"
    assert cache.used_bytes == model_bytes + net_bytes
    assert engine.settings.model in cache.names


def test_net_that_never_fits_beside_its_model_fails_the_order(open_model: Callable[..., DiffusionEngine]) -> None:
    engine = open_model(pinned=False)
    engine.models.cache.budget_bytes = engine.models.cache.used_bytes + 1
    engine.submit(1, order())
    event = run_to_end(engine, [1])[1]
    assert isinstance(event, Failed)
    assert (event.kind, event.code) == ("temporary", "out-of-memory")
    assert "IMAGE_MEMORY_BUDGET_BYTES" in event.message


def test_net_is_in_the_dtype_of_the_models(folders: dict[str, Path], tmp_path: Path) -> None:
    nets = ControlNets({"edges": str(folders[NET])}, "cpu", "bfloat16", silent_host(tmp_path))
    loaded = nets.load("edges")
    assert {tensor.dtype for tensor in loaded.net.parameters()} == {torch.bfloat16}
    assert nets.size_bytes("edges") == sum(2 * tensor.numel() for tensor in loaded.net.parameters())
    nets.sources["gone"] = str(tmp_path / "gone")
    with pytest.raises(TemporaryError, match="the ControlNet gone cannot be used"):
        nets.size_bytes("gone")
