"""The adapters of all rows of a call, stacked for one layer. `rows` are indices on the first axis of the layer's input and output.

Linear pairs are two batched products, whatever the number of adapters: the ranks of a row's adapters are joined, their coefficients are
multiplied into `up`, and smaller ranks are padded with zeros. Other changes are computed adapter by adapter, for its rows alone.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from actors.engines.diffusion.batching import RowAdapters
from actors.engines.diffusion.lora.changes import LayerChange, LowRank, is_convolution
from actors.engines.diffusion.lora.composition import Composition

MAX_BATCH_BYTES = 256 << 20
"""Of the batched pairs of one layer; larger ones are not repeated row by row, but multiplied once for all rows with equal adapters."""
MAX_CALLS = 4
"""Calls whose stacked weights are kept: as many groups of rows may take turns."""
MAX_KEPT_BYTES = 1 << 30
"""Of the stacked weights of all these calls together; the least recent call gives way, and a layer beyond it is stacked in each step."""

CallRows = tuple[RowAdapters, ...]


@dataclass(frozen=True)
class StackedPair:
    """`down`: in × rank, `up`: rank × out, the coefficients in it; with a leading axis one pair for each row. `rows`: None for all."""

    rows: Any
    down: Any
    up: Any

    def apply(self, x: Any) -> Any:
        if self.down.dim() == 2:
            return x @ self.down @ self.up
        return (x.reshape(len(x), -1, x.shape[-1]) @ self.down @ self.up).reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class StackedLayer:
    """`others`: (rows, change, coefficients: rows × 1 or rows × out). `gain`: all rows × out, of the layer's own output without bias."""

    pairs: list[StackedPair] = field(default_factory=list)
    others: list[tuple[Any, LayerChange, Any]] = field(default_factory=list)
    gain: Any = None

    @property
    def size_bytes(self) -> int:
        tensors = [tensor for pair in self.pairs for tensor in (pair.down, pair.up)] + [values for _, _, values in self.others]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, self.gain) if tensor is not None)

    def add_to(self, layer: Any, x: Any, result: Any) -> Any:
        """The layer's `result` for `x`, with the changes of each row."""
        if self.gain is not None:
            own = result if layer.bias is None else result - along_outputs(layer, layer.bias[None], result)
            result = result + own * along_outputs(layer, self.gain - 1, result)
        for pair in self.pairs:
            delta = pair.apply(x if pair.rows is None else x[pair.rows]).to(result.dtype)
            result = result + delta if pair.rows is None else result.index_add(0, pair.rows, delta)
        for rows, change, coefficients in self.others:
            delta = change.delta.apply(layer, x[rows])
            result = result.index_add(0, rows, (delta * along_outputs(layer, coefficients, delta)).to(result.dtype))
        return result


class StackedCalls:
    """The stacked layers of the last calls, by the adapters of their rows; None for a layer that these do not change.

    The thread of the VAE may drop them while another makes a step.
    """

    def __init__(self) -> None:
        self._calls: OrderedDict[CallRows, dict[Hashable, StackedLayer | None]] = OrderedDict()
        self._lock = Lock()
        self._keeping, self._bytes = True, 0

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def clear(self) -> None:
        """Drop what is kept; from here on weights are kept again."""
        with self._lock:
            self._calls.clear()
            self._bytes, self._keeping = 0, True

    def stop_keeping(self) -> bool:
        """Whether weights were dropped. Then none are kept until `clear`, so that a step that is made again needs less."""
        with self._lock:
            if not self._bytes:
                return False
            self._calls.clear()
            self._bytes, self._keeping = 0, False
            return True

    def get(self, rows: CallRows, place: Hashable, build: Callable[[], StackedLayer | None]) -> StackedLayer | None:
        """What is kept of a layer in calls with these rows, or what `build` makes; that is kept where there is room."""
        with self._lock:
            call = self._calls.get(rows, {})
            if rows in self._calls:
                self._calls.move_to_end(rows)
            if place in call:
                return call[place]
        layer = build()
        self._keep(rows, place, layer)
        return layer

    def _keep(self, rows: CallRows, place: Hashable, layer: StackedLayer | None) -> None:
        size = layer.size_bytes if layer else 0
        with self._lock:
            call = self._calls.setdefault(rows, {})
            while len(self._calls) > 1 and (len(self._calls) > MAX_CALLS or self._bytes + size > MAX_KEPT_BYTES):
                _, oldest = self._calls.popitem(last=False)
                self._bytes -= sum(kept.size_bytes for kept in oldest.values() if kept)
            if not size or (self._keeping and self._bytes + size <= MAX_KEPT_BYTES):
                self._bytes += size
                call[place] = layer


def along_outputs(layer: Any, values: Any, output: Any) -> Any:
    """rows × out (or × 1), shaped to be multiplied with a layer's output."""
    values = values.to(output)
    if is_convolution(layer):
        return values[:, :, None, None]
    return values.reshape(len(values), *(1 for _ in output.shape[2:]), values.shape[1])


def stack_layer(layer: Any, rows: Sequence[Composition | None], changes: Mapping[str, LayerChange], x: Any) -> StackedLayer:
    """`rows`: for each row what its adapters do to the layer; equal ones are the same object. `x`: for device and dtype."""
    batched = not is_convolution(layer)
    pairs = {adapter: change for adapter, change in changes.items() if batched and isinstance(change.delta, LowRank)}
    others = [stack_other(change, adapter, rows, x) for adapter, change in changes.items() if adapter not in pairs]
    return StackedLayer(stack_pairs(rows, pairs, x), others, stack_gains(rows, x))


def stack_pairs(rows: Sequence[Composition | None], changes: Mapping[str, LayerChange], x: Any) -> list[StackedPair]:
    import torch

    rows_by_composition: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        if row and row.coefficients.keys() & changes.keys():
            rows_by_composition.setdefault(id(row), []).append(number)
    joined = {key: join_ranks(rows[numbers[0]], changes, x) for key, numbers in rows_by_composition.items()}
    if not joined:
        return []
    rank = max(down.shape[1] for down, _ in joined.values())
    number_of_rows = sum(len(numbers) for numbers in rows_by_composition.values())
    down, up = next(iter(joined.values()))
    if len(joined) == 1 or number_of_rows * rank * (len(down) + up.shape[1]) * x.element_size() > MAX_BATCH_BYTES:
        return [StackedPair(index(rows_by_composition[key], len(rows), x), *pair) for key, pair in joined.items()]
    key_by_row = {number: key for key, numbers in rows_by_composition.items() for number in numbers}
    numbers = sorted(key_by_row)
    padded = {key: (pad(down, (0, rank - down.shape[1])), pad(up, (0, 0, 0, rank - len(up)))) for key, (down, up) in joined.items()}
    downs, ups = (torch.stack([padded[key_by_row[number]][half] for number in numbers]) for half in (0, 1))
    return [StackedPair(index(numbers, len(rows), x), downs, ups)]


def join_ranks(row: Composition | None, changes: Mapping[str, LayerChange], x: Any) -> tuple[Any, Any]:
    """The pairs of a row as one: in × rank and rank × out, on the device of `x` and in its dtype."""
    import torch

    assert row
    downs, ups = [], []
    for adapter, coefficient in row.coefficients.items():
        if adapter not in changes:
            continue
        delta = changes[adapter].delta
        assert isinstance(delta, LowRank)
        downs.append(delta.down.T.to(x))
        ups.append((delta.up.T * coefficient).to(x))
    return torch.cat(downs, dim=1), torch.cat(ups)


def stack_other(change: LayerChange, adapter: str, rows: Sequence[Composition | None], x: Any) -> tuple[Any, LayerChange, Any]:
    import torch

    found = [(number, row.coefficients[adapter]) for number, row in enumerate(rows) if row and adapter in row.coefficients]
    values = [value if isinstance(value, torch.Tensor) else torch.tensor([value], dtype=torch.float64) for _, value in found]
    width = max(len(value) for value in values)
    coefficients = torch.stack([value.expand(width).to(device=x.device, dtype=wider(x)) for value in values])
    return torch.tensor([number for number, _ in found], device=x.device), change, coefficients


def stack_gains(rows: Sequence[Composition | None], x: Any) -> Any:
    import torch

    found = {number: row.gain for number, row in enumerate(rows) if row and row.gain is not None}
    if not found:
        return None
    one = torch.ones_like(next(iter(found.values())))
    return torch.stack([found.get(number, one).to(device=x.device, dtype=wider(x)) for number in range(len(rows))])


def wider(x: Any) -> Any:
    """The dtype of coefficients: they are rounded to that of the rows last."""
    import torch

    return torch.promote_types(x.dtype, torch.float32)


def index(numbers: Sequence[int], count: int, x: Any) -> Any:
    """The rows of a call of `count` rows; None for all."""
    import torch

    return None if len(numbers) == count else torch.tensor(numbers, device=x.device)


def pad(tensor: Any, widths: tuple[int, ...]) -> Any:
    from torch.nn import functional

    return functional.pad(tensor, widths) if any(widths) else tensor
