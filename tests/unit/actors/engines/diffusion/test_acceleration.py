"""Compiled blocks and the layout `channels_last` draw the same picture, or say why they cannot be used and leave the model as it was."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engines.diffusion.acceleration import compile_blocks, use_channels_last
from actors.engines.diffusion.batching import RowAdapters, advance_rows
from actors.engines.diffusion.checkpoint_check import draw_test_picture
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.lora.slots import LoraSlots
from actors.engines.diffusion.row_start import RowStarter
from tests.support.family_orders import TINY, write_family_loras
from tests.support.family_rows import draw_latents, load_family, make_order

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore")]
"""The tracer of torch and schedulers of diffusers warn of what they themselves use."""

TOLERANCE = 1e-4
"""Relative; compiled code sums in another order."""


def compiled_family(name: str, monkeypatch: pytest.MonkeyPatch) -> Family:
    """Traced by torch as for compilation, and run without a compiler, which takes minutes."""
    torch._dynamo.reset()
    family = load_family(name, torch.float32)
    compile_without_code = partial(family.denoiser.compile_repeated_blocks, backend="eager")
    monkeypatch.setattr(family.denoiser, "compile_repeated_blocks", compile_without_code)
    return family


def compiled_blocks(family: Family) -> int:
    return sum(module._compiled_call_impl is not None for module in family.denoiser.modules())


@torch.inference_mode()
def draw_with_loras(family: Family, loras: LoraSlots, adapters: list[RowAdapters]) -> list[torch.Tensor]:
    orders = [make_order(family, seed=number, steps=2 + number) for number in range(len(adapters))]
    rows = [
        RowStarter(number, order, family, "model", family.encode(order), adapters[number]).build_rows()[0]
        for number, order in enumerate(orders)
    ]
    while remaining := [row for row in rows if not row.done]:
        advance_rows(family, remaining, loras.set_row_adapters, 4)
    return [row.latents for row in rows]


@pytest.mark.parametrize("name", ["tiny-flux", "tiny-sd15"])
def test_loras_apply_to_compiled_blocks_row_by_row(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[torch.Tensor]] = []
    for family in (load_family(name, torch.float32), compiled_family(name, monkeypatch)):
        loras = LoraSlots(family, 2)
        if drawn:
            loras.keep_out_of_compiled_code()
            assert compile_blocks(family, partial(draw_test_picture, family)) is None
            assert compiled_blocks(family) > 0
        first, second = list(write_family_loras(TINY[name], family.pipeline, tmp_path).values())[:2]
        pictures = draw_with_loras(family, loras, [(), ()])
        one, other = ((loras.acquire(file), 1.0) for file in (first, second))
        pictures += draw_with_loras(family, loras, [(one,), (other,)])
        pictures += draw_with_loras(family, loras, [(), (one, other)])
        drawn.append([*pictures, *draw_with_loras(family, loras, [(), ()])])
    plain, compiled = drawn
    assert not torch.allclose(plain[0], plain[2], rtol=0.01)
    for expected, latents in zip(plain, compiled, strict=True):
        assert float((latents - expected).abs().max() / expected.abs().max()) < TOLERANCE


def test_blocks_that_cannot_be_compiled_run_as_before_and_the_warning_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family("tiny-flux", torch.float32)
    expected = draw_latents(family, [make_order(family)])[0]

    def fail(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler")

    monkeypatch.setattr(family.denoiser, "compile_repeated_blocks", partial(family.denoiser.compile_repeated_blocks, backend=fail))
    warning = compile_blocks(family, partial(draw_test_picture, family))
    assert warning is not None
    assert "IMAGE_COMPILE" in warning
    assert compiled_blocks(family) == 0
    assert torch.equal(draw_latents(family, [make_order(family)])[0], expected)


def test_a_family_without_repeated_blocks_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family("tiny-flux", torch.float32)
    monkeypatch.setattr(type(family.denoiser), "_repeated_blocks", [])
    assert "not compiled" in (compile_blocks(family, partial(draw_test_picture, family)) or "")


def test_a_device_that_fails_while_compiling_is_no_warning() -> None:
    def fail() -> None:
        raise MemoryError

    family = load_family("tiny-flux", torch.float32)
    family.denoiser.compile_repeated_blocks = lambda **options: None
    with pytest.raises(MemoryError):
        compile_blocks(family, fail)


def test_channels_last_draws_the_same() -> None:
    plain, family = load_family("tiny-sd15", torch.float32), load_family("tiny-sd15", torch.float32)
    assert use_channels_last(family) is None
    assert family.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert family.pipeline.vae.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    order = make_order(plain)
    expected = draw_latents(plain, [order])[0]
    assert float((draw_latents(family, [order])[0] - expected).abs().max() / expected.abs().max()) < TOLERANCE


def test_convolutions_of_three_axes_are_left_as_they_are_with_a_warning() -> None:
    warning = use_channels_last(load_family("tiny-qwen-image", torch.float32))
    assert warning is not None
    assert "VAE of Qwen-Image" in warning
