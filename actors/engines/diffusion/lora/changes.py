"""What an adapter adds to the output of one layer: products of matrices (LoRA, DoRA), of Hadamard (LoHa) and of Kronecker (LoKr).

N is the number of rows. A linear layer reads N × … × in, a convolution N × in × H × W. Nothing of the size of the layer's weight is kept.
"""

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
        if self.mid is not None:
            raise NotImplementedError("a kernel between the halves is no part of DoRA")
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
    a·c × b·d; in a convolution `right` has the kernel. `rows`: of a fused layer's output, those that are this layer's.
    """

    left: tuple[Any, ...]
    right: tuple[Any, ...]
    rows: tuple[int, int] | None = None

    def apply(self, layer: Any, x: Any) -> Any:
        inner, axis = self.left[0].shape[1], 1 if is_convolution(layer) else -1
        if axis == 1:
            parts = x.reshape(len(x) * inner, -1, *x.shape[2:])
            changed = apply_factors(layer, self.right, parts).unflatten(0, (len(x), inner))
        else:
            changed = apply_factors(layer, self.right, x.unflatten(-1, (inner, -1)))
        along = axis if axis == 1 else -2
        changed = changed.movedim(along, -1)
        for factor in self.left:
            changed = changed @ factor.to(changed).T
        output = changed.movedim(-1, along).flatten(along, along + 1)
        return output if self.rows is None else output.narrow(axis, self.rows[0], self.rows[1] - self.rows[0])


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
    delta = change.delta
    kept: tuple[Any, ...]
    if isinstance(delta, LowRank):
        kept = delta.down, delta.mid, delta.up
    else:
        kept = (*delta.products[0], *delta.products[1]) if isinstance(delta, Hadamard) else (*delta.left, *delta.right)
    yield from (tensor for tensor in (*kept, change.magnitude) if tensor is not None)


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
