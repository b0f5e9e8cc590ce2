"""First-block caching: a row whose first block changed little since its last full step takes what the other blocks added then.

The decision is a row's own, from its own residuals: rows that go on pass the other blocks without those that do not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from actors.engines.diffusion.batching import Condition, DiffusionRow, RowAdapters
from bus.errors import PermanentError

if TYPE_CHECKING:
    from actors.engines.diffusion.families.family import Family

ROW_ARGUMENTS = ("temb", "encoder_hidden_states_mask")
"""Arguments of a block that have one entry for each row, beside the hidden states."""


@dataclass(frozen=True)
class LastFullStep:
    """`step_index`: of the row then. `first`, `others`: what the first block and all others added to the hidden states of its halves."""

    step_index: int
    first: torch.Tensor
    others: torch.Tensor


@dataclass
class BlockCall:
    """One call of the denoiser. `rows`: one for each half. `full`: the indices of halves that pass all blocks; None: all of them.

    `hidden`: after the first block. `kept`: what is remembered of the rows with a full step when the call has succeeded.
    """

    rows: Sequence[DiffusionRow]
    full: list[int] | None = None
    hidden: torch.Tensor | None = None
    first: torch.Tensor | None = None
    kept: dict[DiffusionRow, LastFullStep] = field(default_factory=dict)


class BlockCache:
    """Wraps the blocks of a family's denoiser. `threshold`: the largest change of a first block's residual, relative to its mean size.

    `block_calls`, `left_out`: blocks × halves that were run, and that were not. What is remembered of a row goes with the row.
    """

    def __init__(self, family: "Family", threshold: float, set_row_adapters: Callable[[Sequence[RowAdapters] | None], None]) -> None:
        require_cached_blocks(type(family))
        self.threshold, self.set_row_adapters = threshold, set_row_adapters
        self.block_calls = self.left_out = 0
        self._call: BlockCall | None = None
        self._last_full: WeakKeyDictionary[DiffusionRow, LastFullStep] = WeakKeyDictionary()
        blocks = [block for name in family.cached_blocks for block in getattr(family.denoiser, name)]
        for number, block in enumerate(blocks):
            block.forward = partial(self._run_block, block.forward, number == 0, number == len(blocks) - 1)
        family.denoise = partial(self._denoise, family.denoise)  # type: ignore[method-assign]

    def _denoise(
        self,
        original: Callable[..., torch.Tensor],
        x: torch.Tensor,
        t: torch.Tensor,
        conditions: Sequence[Condition],
        rows: Sequence[DiffusionRow],
    ) -> torch.Tensor:
        """Nothing is remembered of a call that fails, and a step that is made again is made as it was before."""
        self._call = BlockCall(rows)
        try:
            result = original(x, t, conditions, rows)
            self._last_full.update(self._call.kept)
            return result
        finally:
            self._call = None

    def _run_block(
        self, original: Callable[..., tuple[Any, torch.Tensor]], is_first: bool, is_last: bool, **arguments: Any
    ) -> tuple[Any, torch.Tensor]:
        """`arguments` and the result are those of the block: text, or None after the last one, and hidden states, R × tokens × width."""
        call = self._call
        if call is None:
            return original(**arguments)
        if is_first:
            text, hidden = original(**arguments)
            self.block_calls += len(hidden)
            return self._choose_rows(call, arguments["hidden_states"], text, hidden)
        text, hidden = arguments["encoder_hidden_states"], arguments["hidden_states"]
        count = len(call.rows) if call.full is None else len(call.full)
        self.block_calls += count
        self.left_out += len(call.rows) - count
        if count:
            text, hidden = original(**select_rows(arguments, call.full))
        return (text, self._merge_rows(call, hidden)) if is_last else (text, hidden)

    def _choose_rows(self, call: BlockCall, before: torch.Tensor, text: Any, hidden: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """After the first block: the halves that go on, all of them or a part."""
        call.hidden, call.first = hidden, hidden - before
        full = [
            index
            for row, indices in halves_by_row(call.rows).items()
            if self._needs_full_step(row, call.first[indices])
            for index in indices
        ]
        if len(full) == len(call.rows):
            return text, hidden
        call.full = full
        self.set_row_adapters([call.rows[index].adapters for index in full])
        return (text[full], hidden[full]) if full else (text, hidden)

    def _needs_full_step(self, row: DiffusionRow, first: torch.Tensor) -> bool:
        """Whether one of its halves changed by the threshold or more, or the row has no full step before this one."""
        last = self._last_full.get(row)
        if last is None or last.step_index >= row.step_index:
            return True
        axes = tuple(range(1, first.dim()))
        change = (first - last.first).abs().mean(axes) / last.first.abs().mean(axes)
        return not bool((change < self.threshold).all())

    def _merge_rows(self, call: BlockCall, hidden: torch.Tensor) -> torch.Tensor:
        """After the last block: the hidden states of all halves."""
        assert call.hidden is not None
        assert call.first is not None
        full = range(len(call.rows)) if call.full is None else call.full
        merged = hidden
        if call.full is not None:
            merged = call.hidden.clone()
            merged[call.full] = hidden if call.full else call.hidden[:0]
            self.set_row_adapters([row.adapters for row in call.rows])
        for row, indices in halves_by_row(call.rows).items():
            if indices[0] in full:
                call.kept[row] = LastFullStep(row.step_index, call.first[indices], merged[indices] - call.hidden[indices])
            else:
                merged[indices] += self._last_full[row].others
        return merged


def require_cached_blocks(family: "type[Family]") -> None:
    """Raises PermanentError for a family whose blocks cannot be left out row by row."""
    if not family.cached_blocks:
        raise PermanentError(
            "block-cache-unsupported",
            f"IMAGE_BLOCK_CACHE_THRESHOLD is set, but {family.name} has no blocks that a row can leave out: set it to 0 in this worker",
        )


def halves_by_row(rows: Sequence[DiffusionRow]) -> dict[DiffusionRow, list[int]]:
    indices: dict[DiffusionRow, list[int]] = {}
    for index, row in enumerate(rows):
        indices.setdefault(row, []).append(index)
    return indices


def select_rows(arguments: dict[str, Any], full: list[int] | None) -> dict[str, Any]:
    """The arguments of a block for a part of the rows; the hidden states are already theirs."""
    if full is None:
        return arguments
    return {name: value[full] if name in ROW_ARGUMENTS and value is not None else value for name, value in arguments.items()}
