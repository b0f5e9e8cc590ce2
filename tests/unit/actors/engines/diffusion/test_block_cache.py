"""First-block caching decides for each row by itself, and a row gets what it would get alone."""

import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from actors.engines.diffusion.batching import DiffusionRow, RowAdapters, advance_rows
from actors.engines.diffusion.block_cache import BlockCache
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.families.stable_diffusion import StableDiffusion
from actors.engines.diffusion.requests import ResolvedRequest
from actors.engines.diffusion.row_start import RowStarter
from bus.errors import PermanentError
from tests.support.family_rows import draw_latents, load_family, make_order

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

THRESHOLDS = {"tiny-flux": 0.045, "tiny-sd3": 0.12, "tiny-qwen-image": 0.1}
"""Thresholds that some steps are below and others are not."""
FAMILIES = tuple(THRESHOLDS)


def load_calm_family(name: str, dtype: torch.dtype = torch.float64) -> Family:
    """A step's time changes the blocks a little, as in trained models; with random weights it would change them wholly."""
    family = load_family(name, dtype)
    with torch.no_grad():
        for weight in family.denoiser.time_text_embed.timestep_embedder.linear_2.parameters():
            weight.mul_(0.05)
    return family


def open_cache(family: Family, threshold: float) -> tuple[BlockCache, list[Sequence[RowAdapters] | None]]:
    """The cache, and the adapters that it set."""
    adapters: list[Sequence[RowAdapters] | None] = []
    return BlockCache(family, threshold, adapters.append), adapters


def make_orders(family: Family) -> list[ResolvedRequest]:
    """Orders that differ in steps, seed and prompt: many steps change less from one to the next than few."""
    return [
        make_order(family, prompt, seed=seed, steps=steps)
        for prompt, seed, steps in (("a cat", 1, 3), ("a dog in the rain", 2, 20), ("a house", 3, 8))
    ]


def start_rows(family: Family, adapters: Sequence[RowAdapters] = ((), ())) -> list[DiffusionRow]:
    """A row of 8 steps for each, of different prompts."""
    orders = [make_order(family, f"picture {number}", seed=number, steps=8) for number in range(len(adapters))]
    return [
        RowStarter(number, order, family, "model", family.encode(order), adapters[number]).build_rows()[0]
        for number, order in enumerate(orders)
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_threshold_that_no_row_is_below_changes_no_bit(name: str) -> None:
    plain = load_family(name, torch.float32)
    expected = draw_latents(plain, make_orders(plain))
    family = load_family(name, torch.float32)
    cache, _ = open_cache(family, 1e-12)
    drawn = draw_latents(family, make_orders(family))
    assert all(torch.equal(one, other) for one, other in zip(expected, drawn, strict=True))
    assert cache.left_out == 0
    assert cache.block_calls > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_above_every_change_only_the_first_step_passes_all_blocks(name: str) -> None:
    family = load_family(name)
    blocks = sum(len(getattr(family.denoiser, part)) for part in family.cached_blocks)
    cache, _ = open_cache(family, 1e9)
    order = make_order(family, steps=5)
    halves = len(family.encode(order))
    draw_latents(family, [order])
    assert (cache.block_calls, cache.left_out) == (halves * (blocks + 4), halves * 4 * (blocks - 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_leaves_out_the_same_blocks_alone_and_in_company(name: str) -> None:
    threshold = THRESHOLDS[name]
    alone, together = [], load_calm_family(name)
    left_out = 0
    for order in make_orders(together):
        family = load_calm_family(name)
        cache, _ = open_cache(family, threshold)
        alone += draw_latents(family, [order])
        left_out += cache.left_out
    cache, _ = open_cache(together, threshold)
    drawn = draw_latents(together, make_orders(together))
    assert cache.left_out == left_out > 0
    assert cache.block_calls > left_out
    for one, other in zip(alone, drawn, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10 * float(one.abs().max()))


def test_rows_that_go_on_keep_their_adapters_and_all_have_theirs_after_the_last_block() -> None:
    family = load_family("tiny-flux")
    cache, adapters = open_cache(family, 1e9)
    rows = start_rows(family, [(("lora-1", 1.0),), (("lora-2", 0.5),)])
    with torch.inference_mode():
        advance_rows(family, rows[:1], lambda _: None, 2)
        assert adapters == []
        advance_rows(family, rows, lambda _: None, 2)
    assert adapters == [[rows[1].adapters], [rows[0].adapters, rows[1].adapters]]
    assert cache.left_out == 1


def test_a_step_that_fails_and_is_made_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory runs out in the second of two calls: the rows of the first have made a full step, and make it again."""
    expected, drawn = [], []
    for fails, latents in ((False, expected), (True, drawn)):
        family = load_family("tiny-flux", torch.float32)
        open_cache(family, 1e9)
        rows = start_rows(family)
        calls = 0
        original = family.denoiser.proj_out.forward

        def fail_once(x: Any, original: Any = original, fails: bool = fails) -> Any:
            nonlocal calls
            calls += 1
            if fails and calls == 2:
                raise MemoryError
            return original(x)

        family.denoiser.proj_out.forward = fail_once
        with torch.inference_mode():
            while not rows[0].done:
                try:
                    advance_rows(family, rows, lambda _: None, 1)
                except MemoryError:
                    continue
        latents += [row.latents for row in rows]
    assert all(torch.equal(one, other) for one, other in zip(expected, drawn, strict=True))


def test_what_is_remembered_goes_with_the_row() -> None:
    family = load_family("tiny-flux")
    cache, _ = open_cache(family, 1e9)
    rows = start_rows(family)
    with torch.inference_mode():
        advance_rows(family, rows, lambda _: None, 2)
    assert len(cache._last_full) == 2
    del rows[0]
    assert len(cache._last_full) == 1


def test_a_family_with_a_unet_is_refused_by_name() -> None:
    with pytest.raises(PermanentError, match=StableDiffusion.name) as refused:
        open_cache(load_family("tiny-sd15"), 0.1)
    assert refused.value.code == "block-cache-unsupported"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_difference_grows_with_the_threshold(name: str) -> None:
    """Shown with `-rP`: what a threshold saves and what it changes, with random weights and two blocks."""
    plain = load_calm_family(name, torch.float32)
    expected = draw_pixels(plain)
    shares, differences = [], []
    for factor in (0.5, 1, 2):
        family = load_calm_family(name, torch.float32)
        cache, _ = open_cache(family, factor * THRESHOLDS[name])
        difference = (draw_pixels(family) - expected).abs()
        shares.append(cache.left_out / (cache.left_out + cache.block_calls))
        differences.append(float(difference.mean()))
        sys.stdout.write(
            f"{name}, threshold {cache.threshold:g}: {shares[-1]:.0%} of block calls left out; difference of 255: "
            f"{differences[-1]:.2f} mean, {float(difference.max()):.0f} greatest\n"
        )
    assert shares == sorted(shares)
    assert shares[-1] > 0
    assert differences[0] <= differences[-1]


@torch.inference_mode()
def draw_pixels(family: Family) -> torch.Tensor:
    """H × W × 3, 0…255, after 20 steps."""
    order = make_order(family, seed=7, steps=20)
    return (family.decode(order, draw_latents(family, [order])[0]) / 2 + 0.5).clamp(0, 1) * 255
