"""Stable Diffusion 3: with and without T5, and sizes within its table of positions."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.engines.diffusion.checkpoint_check import check_parts
from actors.engines.diffusion.families.stable_diffusion_3 import StableDiffusion3
from actors.engines.diffusion.model import load_parts
from bus.errors import PermanentError
from tests.support.family_rows import draw_latents, load_family, make_order, relative_difference, tiny_checkpoint
from tests.support.stock_families import StockFamily

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")]


def load() -> StableDiffusion3:
    family = load_family("tiny-sd3")
    assert isinstance(family, StableDiffusion3)
    return family


@torch.inference_mode()
def test_without_t5_zeros_stand_for_its_text_as_in_the_stock_pipeline() -> None:
    family, stock = load(), StockFamily(tiny_checkpoint("tiny-sd3"), torch.float64)
    for pipeline in (family.pipeline, stock.pipeline):
        pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    family.check()
    order = make_order(family, negative_prompt="a dog")

    latents = draw_latents(family, [order, make_order(family, "a house")])[0]

    assert relative_difference(stock.draw(order).latents, latents) < 1e-12


def test_without_t5_the_limit_is_that_of_clip() -> None:
    family = load()
    family.pipeline.text_encoder_3 = family.pipeline.tokenizer_3 = None

    with torch.inference_mode():
        family.encode(make_order(family, "a " * 75))
        with pytest.raises(PermanentError, match="the prompt has 78 tokens; Stable Diffusion 3 reads at most 77"):
            family.encode(make_order(family, "a " * 76))


def test_a_checkpoint_may_leave_out_t5_but_not_some_of_its_weights(tmp_path: Path) -> None:
    folder = Path(copytree(tiny_checkpoint("tiny-sd3"), tmp_path / "model"))
    weights = folder / "text_encoder_3" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "DenseReluDense" not in name}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="text_encoder_3"):
        load_parts(folder, StableDiffusion3, torch.float32)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}))

    pipeline = StableDiffusion3.load(str(folder), torch.float32, **load_parts(folder, StableDiffusion3, torch.float32))

    check_parts(StableDiffusion3(pipeline))
    assert pipeline.text_encoder_3 is None


def test_a_tokenizer_without_a_length_gets_that_of_its_text_encoder() -> None:
    family = load()
    family.pipeline.tokenizer.model_max_length = family.pipeline.tokenizer_max_length = 10**30

    family.check()

    assert family.pipeline.tokenizer_max_length == 77


def test_a_size_beyond_the_table_of_positions_is_refused_with_the_limit() -> None:
    family = load()
    assert (family.own_side, make_order(family, width=1024, height=64).width) == (64, 1024)

    with pytest.raises(PermanentError, match="1040×64: both sides may have at most 1024 pixels") as failure:
        make_order(family, width=1040, height=64)

    assert failure.value.code == "size-unsupported"


def test_the_shift_is_fixed_unless_the_scheduler_says_otherwise() -> None:
    family = load()
    orders = [make_order(family, width=side, height=side, steps=4) for side in (64, 512)]

    fixed = [family.build_schedule(order).timesteps for order in orders]
    family.pipeline.scheduler = type(family.pipeline.scheduler)(use_dynamic_shifting=True)
    dynamic = [family.build_schedule(order).timesteps for order in orders]

    assert torch.equal(*fixed)
    assert bool((dynamic[0][1:] < dynamic[1][1:]).all())
