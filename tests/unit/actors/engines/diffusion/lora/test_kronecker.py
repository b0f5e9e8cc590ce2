"""LoKr of every form: equal to the dense product in double precision, and no tensor in between larger than the layer's input or output."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actors.engines.diffusion.lora.changes import Kronecker, build_kronecker, tensors_of_delta
from actors.engines.diffusion.lora.tensors import kronecker_factors

pytestmark = pytest.mark.models

TOKENS, SIDE = 64, 12
Shapes = dict[str, tuple[int, ...]]
LINEAR: dict[str, tuple[Shapes, tuple[int, int]]] = {
    "a row and a column": ({"lokr_w1": (1, 96), "lokr_w2": (96, 1)}, (96, 96)),
    "a column and a row": ({"lokr_w1": (96, 1), "lokr_w2": (1, 96)}, (96, 96)),
    "rank above a number": ({"lokr_w1": (96, 96), "lokr_w2_a": (1, 256), "lokr_w2_b": (256, 1)}, (96, 96)),
    "rank above a number on the left": ({"lokr_w1_a": (1, 256), "lokr_w1_b": (256, 1), "lokr_w2": (96, 96)}, (96, 96)),
    "rank above a side": ({"lokr_w1_a": (12, 32), "lokr_w1_b": (32, 12), "lokr_w2_a": (8, 32), "lokr_w2_b": (32, 8)}, (96, 96)),
    "ranks below the sides": ({"lokr_w1_a": (12, 2), "lokr_w1_b": (2, 12), "lokr_w2_a": (8, 3), "lokr_w2_b": (3, 8)}, (96, 96)),
    "a wide one": ({"lokr_w1": (1, 24), "lokr_w2_a": (12, 2), "lokr_w2_b": (2, 8)}, (12, 192)),
    "a high one": ({"lokr_w1": (24, 1), "lokr_w2": (8, 12)}, (192, 12)),
}
CONVOLUTIONS: dict[str, Shapes] = {
    "a row and a column": {"lokr_w1": (1, 24), "lokr_w2": (24, 1, 3, 3)},
    "a column and a row": {"lokr_w1": (24, 1), "lokr_w2": (1, 24, 3, 3)},
    "rank above a side": {"lokr_w1": (12, 12), "lokr_w2_a": (2, 32), "lokr_w2_b": (32, 18)},
    "rank below the sides": {"lokr_w1": (2, 2), "lokr_w2_a": (12, 2), "lokr_w2_b": (2, 108)},
    "tucker": {"lokr_w1": (2, 2), "lokr_w2_a": (2, 12), "lokr_w2_b": (2, 12), "lokr_t2": (2, 2, 3, 3)},
    "tucker of a rank above a side": {"lokr_w1": (12, 12), "lokr_w2_a": (16, 2), "lokr_w2_b": (16, 2), "lokr_t2": (16, 16, 3, 3)},
    "tucker of a rank above one side": {"lokr_w1": (12, 1), "lokr_w2_a": (6, 2), "lokr_w2_b": (6, 24), "lokr_t2": (6, 6, 3, 3)},
}


class LargestTensor(TorchDispatchMode):
    """Keeps the size of the largest storage that any operation made."""

    values = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.values = max(self.values, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def make_factors(shapes: Shapes) -> dict[Any, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {role: torch.randn(shape, generator=generator, dtype=torch.float64) for role, shape in shapes.items()}


def dense(tensors: dict[Any, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """The product of Kronecker, as LyCORIS builds it."""
    left = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    if "lokr_w2" in tensors:
        right = tensors["lokr_w2"]
    elif "lokr_t2" in tensors:
        right = torch.einsum("ijkl,jr,ip->prkl", tensors["lokr_t2"], tensors["lokr_w2_b"], tensors["lokr_w2_a"])
    else:
        right = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    right = right.reshape(len(right), -1, *shape[2:]).contiguous()
    return torch.kron(left.reshape(*left.shape, *(1 for _ in shape[2:])), right)


def build(tensors: dict[Any, torch.Tensor], shape: tuple[int, ...], rows: tuple[int, int] | None = None) -> tuple[Kronecker, float]:
    left = [tensors[role] for role in ("lokr_w1", "lokr_w1_b", "lokr_w1_a") if role in tensors]
    return build_kronecker(left, kronecker_factors(tensors, shape), rows)


def check(delta: Kronecker, factor: float, layer: Any, x: torch.Tensor, expected: torch.Tensor) -> int:
    """Compares the change with what is expected. The values of the largest tensor that was made."""
    with torch.no_grad(), LargestTensor() as largest:
        output = delta.apply(layer, x)
    assert torch.allclose(output * factor, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    return largest.values


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers(name: str) -> None:
    shapes, (outputs, inputs) = LINEAR[name]
    tensors, layer, x = make_factors(shapes), torch.nn.Linear(inputs, outputs), torch.randn(2, TOKENS, inputs, dtype=torch.float64)
    delta, factor = build(tensors, (outputs, inputs))
    expected = torch.nn.functional.linear(x, dense(tensors, (outputs, inputs)))
    assert check(delta, factor, layer, x, expected) <= 2 * TOKENS * max(inputs, outputs)
    assert check(delta, factor, layer, x[:, 0], expected[:, 0]) <= max(x.numel(), expected.numel())
    assert sum(tensor.numel() for tensor in tensors_of_delta(delta)) <= sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, stride: int) -> None:
    tensors, shape = make_factors(CONVOLUTIONS[name]), (24, 24, 3, 3)
    layer = torch.nn.Conv2d(24, 24, 3, stride=stride, padding=1)
    x = torch.randn(2, 24, SIDE, SIDE, dtype=torch.float64)
    delta, factor = build(tensors, shape)
    expected = torch.nn.functional.conv2d(x, dense(tensors, shape), stride=stride, padding=1)
    assert check(delta, factor, layer, x, expected) <= x.numel()
    assert sum(tensor.numel() for tensor in tensors_of_delta(delta)) <= sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("name", LINEAR)
def test_rows_of_fused_layers(name: str) -> None:
    shapes, (outputs, inputs) = LINEAR[name]
    tensors, layer, x = make_factors(shapes), torch.nn.Linear(inputs, outputs), torch.randn(2, TOKENS, inputs, dtype=torch.float64)
    expected = torch.nn.functional.linear(x, dense(tensors, (outputs, inputs)))
    third = math.ceil(outputs / 3)
    for start, stop in ((0, third), (third, 2 * third), (2 * third, outputs), (0, outputs)):
        delta, factor = build(tensors, (stop - start, inputs), (start, stop))
        assert check(delta, factor, layer, x, expected[..., start:stop]) <= 2 * TOKENS * max(inputs, outputs)


def test_products_of_a_chain_are_not_rounded_to_zero_in_half_precision() -> None:
    tensors = {role: torch.full(shape, 1e-5, dtype=torch.float16) for role, shape in LINEAR["rank above a number"][0].items()}
    tensors["lokr_w1"] = torch.full((96, 96), 1.0, dtype=torch.float16)
    delta, factor = build(tensors, (96, 96))
    x = torch.ones(1, 1, 96, dtype=torch.float16)
    output = delta.apply(torch.nn.Linear(96, 96), x).double() * factor
    assert torch.allclose(output, torch.full_like(output, 96 * 256 * 1e-10), rtol=0.02, atol=0)
