"""What an adapter adds to the output of one layer: products of matrices (LoRA, DoRA), of Hadamard (LoHa) and of Kronecker (LoKr).

N is the number of rows. A linear layer reads N × … × in, a convolution N × in × H × W. Nothing of the size of the layer's weight is kept.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.image import AlphaSource

MAX_EXPANDED_RANK = 64
"""The highest rank of a LoHa that is kept as a pair; it is the product of its two ranks, so a pair takes up to four times the file's."""

Product = tuple[Any, Any, Any]
"""out × rank, rank × in and None; or rank × out, rank × in and the kernel between them, rank × rank × k × k."""


@dataclass(frozen=True)
class LowRank:
    """`up` · `down`. Linear: `down` is rank × in, `up` out × rank; convolutions have two more axes, and may have `mid` between them."""

    down: Any
    up: Any
    mid: Any = None

    def apply(self, layer: Any, x: Any) -> Any:
        """The change of the output for `x`."""
        return apply_factors(layer, [factor for factor in (self.down, self.mid, self.up) if factor is not None], x)

    def weight(self) -> Any:
        """The change of the layer's weight, out × in × …"""
        assert self.mid is None, "a kernel between the halves is no part of DoRA"
        flat = self.up.flatten(1) @ self.down.flatten(1)
        return flat.reshape(len(self.up), *self.down.shape[1:])


@dataclass(frozen=True)
class Hadamard:
    """The elementwise product of two products. The change of the weight, of `shape`, is computed in each call."""

    products: tuple[Product, Product]
    shape: tuple[int, ...]

    def apply(self, layer: Any, x: Any) -> Any:
        first, second = (multiply(*(None if factor is None else factor.to(x) for factor in product)) for product in self.products)
        return apply_factors(layer, [(first * second).reshape(self.shape)], x)


@dataclass(frozen=True)
class Kronecker:
    """The product of Kronecker of two chains of matrices, the first to be applied first. Linear: `left` a × b, `right` c × d, for a layer
    a·c × b·d; in a convolution `right` has the kernel. `rows`: of these outputs, those that are the layer's.
    """

    left: tuple[Any, ...]
    right: tuple[Any, ...]
    rows: tuple[int, int] | None = None

    def apply(self, layer: Any, x: Any) -> Any:
        """The change of the output for `x`. No tensor between has more values than the greater of `x` and all outputs."""
        convolution = is_convolution(layer)
        axis = 1 if convolution else -2
        x = x.unflatten(1 if convolution else -1, (self.left[0].shape[1], -1))
        if self._begins_left(layer):
            x = self._apply_right(layer, self._apply_left(x, axis))
        else:
            x = self._apply_left(self._apply_right(layer, x), axis)
        output = x.flatten(axis, axis + 1)
        return output if self.rows is None else output.narrow(1 if convolution else -1, self.rows[0], self.rows[1] - self.rows[0])

    def _begins_left(self, layer: Any) -> bool:
        """Whether fewer values lie between the two when `left` is first: a·d for each position of the input, not b·c of the output."""
        positions = math.prod(layer.stride) if is_convolution(layer) else 1
        first, second = len(self.left[-1]) * self.right[0].shape[1] * positions, self.left[0].shape[1] * len(self.right[-1])
        return bool(first < second)

    def _apply_left(self, x: Any, axis: int) -> Any:
        x = x.movedim(axis, -1)
        for factor in self.left:
            x = x @ factor.to(x).T
        return x.movedim(-1, axis)

    def _apply_right(self, layer: Any, x: Any) -> Any:
        if not is_convolution(layer):
            return apply_factors(layer, self.right, x)
        return apply_factors(layer, self.right, x.flatten(0, 1)).unflatten(0, x.shape[:2])


@dataclass(frozen=True)
class LayerChange:
    """The change of one layer: `factor` · `scaling` · `delta`. `magnitude`: of DoRA, one number for each output."""

    delta: LowRank | Hadamard | Kronecker
    factor: float
    scaling: float
    alpha_from: AlphaSource
    magnitude: Any = None

    @property
    def strength(self) -> float:
        """The factor of `delta` at the scale 1."""
        return self.factor * self.scaling


def tensors_of(change: LayerChange) -> Iterator[Any]:
    """The tensors that a change keeps in memory."""
    yield from tensors_of_delta(change.delta)
    if change.magnitude is not None:
        yield change.magnitude


def tensors_of_delta(delta: LowRank | Hadamard | Kronecker) -> Iterator[Any]:
    """The tensors of a change without its magnitude."""
    kept: tuple[Any, ...]
    if isinstance(delta, LowRank):
        kept = delta.down, delta.mid, delta.up
    else:
        kept = (*delta.products[0], *delta.products[1]) if isinstance(delta, Hadamard) else (*delta.left, *delta.right)
    yield from (tensor for tensor in kept if tensor is not None)


def is_convolution(layer: Any) -> bool:
    return hasattr(layer, "kernel_size")


def apply_factors(layer: Any, factors: Sequence[Any], x: Any) -> Any:
    """`x` times each factor in turn; of a convolution, the factor with its kernel has its stride, padding and dilation."""
    from torch.nn import functional

    if not is_convolution(layer):
        for factor in factors:
            x = functional.linear(x, factor.to(x))
        return x
    at = next((number for number, factor in enumerate(factors) if tuple(factor.shape[2:]) == tuple(layer.kernel_size)), 0)
    for number, factor in enumerate(factors):
        options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation} if number == at else {}
        x = functional.conv2d(x, factor.to(x), **options)
    return x


def multiply(outer: Any, inner: Any, kernel: Any) -> Any:
    """A `Product`: out × in, with a kernel out × in × k × k."""
    import torch

    if kernel is None:
        return outer @ inner
    return torch.einsum("ijkl,jr,ip->prkl", kernel, inner, outer)


def build_kronecker(left: Sequence[Any], right: Sequence[Any], rows: tuple[int, int] | None) -> tuple[Kronecker, float]:
    """The cheapest form, and a factor of it. `rows`: of a fused layer's outputs, those that are wanted; others are computed only where
    they share a row of `left` with them.
    """
    if rows is not None:
        height = len(right[-1])
        first, last = rows[0] // height, (rows[1] - 1) // height
        left = [*left[:-1], left[-1][first : last + 1].clone()]
        rows = rows[0] - first * height, rows[1] - first * height
        if first == last:
            right, rows = [*right[:-1], right[-1][rows[0] : rows[1]].clone()], None
    (left, factor), (right, other) = join_factors(left), join_factors(right)
    return Kronecker(tuple(left), tuple(right), rows), factor * other


def join_factors(factors: Sequence[Any]) -> tuple[list[Any], float]:
    """The chain with each factor multiplied with the one before it where their product has no more values than both, and a factor of it.

    No rank of what is left is higher than the inputs and the outputs of its chain. A product is scaled to 1, so that half precision does
    not round it to zero.
    """
    import torch

    joined, scale = [factors[0]], 1.0
    for factor in factors[1:]:
        inner, (height, width) = joined[-1], (len(factor), joined[-1].shape[1])
        kernel = max(factor.shape[2:], inner.shape[2:])
        if height * width * math.prod(kernel) > factor.numel() + inner.numel():
            joined.append(factor)
            continue
        wide = torch.promote_types(factor.dtype, torch.float32)
        if math.prod(factor.shape[2:]) > 1:
            product = torch.einsum("orkl,ri->oikl", factor.to(wide), inner.flatten(1).to(wide))
        else:
            product = (factor.flatten(1).to(wide) @ inner.flatten(1).to(wide)).reshape(height, width, *kernel)
        peak = float(product.abs().max()) or 1.0
        joined[-1], scale = (product / peak).to(factor.dtype), scale * peak
    return joined, scale


def build_hadamard(products: tuple[Product, Product], shape: tuple[int, ...]) -> tuple[LowRank | Hadamard, float]:
    """The cheapest form, and a factor of it. `shape`: that of the layer's weight.

    Matrices of low ranks are one pair, whose rank is the product of theirs. Both halves are scaled to 1, so that half precision does not
    round small products to zero.
    """
    import torch

    (outer, inner, kernel), (other_outer, other_inner, _) = products
    if kernel is not None or len(inner) * len(other_inner) > min(MAX_EXPANDED_RANK, outer.shape[0], inner.shape[1]):
        return Hadamard(products, shape), 1.0
    wide = torch.promote_types(outer.dtype, torch.float32)
    up = (outer.to(wide)[:, :, None] * other_outer.to(wide)[:, None, :]).flatten(1)
    down = (inner.to(wide)[:, None, :] * other_inner.to(wide)[None, :, :]).flatten(0, 1)
    peaks = [float(half.abs().max()) or 1.0 for half in (up, down)]
    up = (up / peaks[0]).to(outer.dtype).reshape(*up.shape, *(1 for _ in shape[2:]))
    down = (down / peaks[1]).to(outer.dtype).reshape(len(down), *shape[1:])
    return LowRank(down, up), peaks[0] * peaks[1]
