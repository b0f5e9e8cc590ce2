"""Tiny checkpoints as families in this process, and the latents that orders get together, without an engine around them."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from actors.engines.diffusion.batching import DiffusionRow, advance_rows
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.families.registry import find_family
from actors.engines.diffusion.request_check import check_loaded, resolve_request
from actors.engines.diffusion.requests import DiffusionRequest, ResolvedRequest
from actors.engines.diffusion.row_start import RowStarter
from actors.engines.diffusion.tiny_families import write_tiny_family

SIDE = 64
FOLDER = TemporaryDirectory(prefix="tiny-families-")
"""Removed at the end of the process."""


@cache
def tiny_checkpoint(name: str) -> Path:
    """The folder of one of `tiny_families`, written once in a run."""
    folder = Path(FOLDER.name) / name
    write_tiny_family(name, folder)
    return folder


def load_family(name: str, dtype: torch.dtype = torch.float64, **parts: Any) -> Family:
    """`parts`: as in `Family.load`."""
    checkpoint = tiny_checkpoint(name)
    kind = find_family(name, checkpoint)
    pipeline = kind.load(str(checkpoint), dtype, **parts).to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    family = kind(pipeline)
    family.check()
    return family


def make_order(family: Family, prompt: str = "a cat", **changes: Any) -> ResolvedRequest:
    """A small order of a loaded family, checked and with all its parameters."""
    given = {"seed": 3, "width": SIDE, "height": SIDE, "steps": 3, **changes}
    resolved = resolve_request(DiffusionRequest(prompt, **given), family, family.own_side)
    check_loaded(resolved, family)
    return resolved


@torch.inference_mode()
def draw_latents(
    family: Family, orders: Sequence[ResolvedRequest], watch: Callable[[Sequence[DiffusionRow]], None] = lambda rows: None
) -> list[torch.Tensor]:
    """The last latents of the first picture of each order, all in the same calls. `watch` gets the rows of each call before it is made."""
    rows = [RowStarter(number, order, family, "model", family.encode(order), ()).build_rows()[0] for number, order in enumerate(orders)]
    while remaining := [row for row in rows if not row.done]:
        watch(remaining)
        advance_rows(family, remaining, lambda adapters: None, len(rows))
    return [row.latents for row in rows]


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The greatest difference of any value, relative to the greatest value."""
    return float((one.double() - other.double()).abs().max() / one.double().abs().max())
