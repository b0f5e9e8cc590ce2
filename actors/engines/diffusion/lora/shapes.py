"""The shapes of an adapter's tensors: the rank, and the shape of the layer that they change. Nothing else is read."""

from collections.abc import Mapping, Sequence

from actors.engines.diffusion.lora.names import LayerKeys, Role

Shape = Sequence[int]
ONE = (1, 1)
"""The kernel of a linear layer, and of a 1 × 1 convolution, which trainers write with or without it."""


def ranks_of(layer: LayerKeys, shapes: Mapping[str, Shape]) -> list[int]:
    """The ranks of a layer's products, none for a LoKr of two whole matrices. Raises ValueError with the shapes of two tensors that
    do not go together, or of one that is no matrix.
    """
    size: dict[Role, tuple[int, ...]] = {role: tuple(shapes[key]) for role, key in layer.keys.items() if role != "alpha"}
    if odd := next((role for role, shape in size.items() if role != "magnitude" and (len(shape) not in (2, 4) or not all(shape))), None):
        raise ValueError(f"{layer.keys[odd][:200]!r} has the shape {size[odd]}; expected is a matrix or the weights of a convolution")
    ranks = []
    for outer, inner, kernel in products_of(layer):
        outer_rank = size[outer][0 if kernel and outer != "up" else 1]
        expected_ranks = size[kernel][:2] if kernel else (outer_rank, outer_rank)
        if (outer_rank, size[inner][0]) != expected_ranks:
            keys = [layer.keys[role] for role in (outer, inner, kernel) if role]
            expected = "rank × in and out × rank" if not kernel else "ranks as those of the kernel between them"
            raise ValueError(
                f"{' and '.join(repr(key[:200]) for key in keys)} have the shapes "
                f"{' and '.join(str(tuple(shapes[key])) for key in keys)}; expected are {expected}"
            )
        ranks.append(size[inner][0])
    return ranks


def products_of(layer: LayerKeys) -> list[tuple[Role, Role, Role | None]]:
    """(outer, inner, the kernel between them) of each product of two matrices among a layer's tensors."""
    found: list[tuple[Role, Role, Role | None]] = [
        ("up", "down", "mid"), ("hada_w1_a", "hada_w1_b", "hada_t1"), ("hada_w2_a", "hada_w2_b", "hada_t2"),
        ("lokr_w1_a", "lokr_w1_b", None), ("lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ]  # fmt: skip
    return [(outer, inner, kernel if kernel in layer.keys else None) for outer, inner, kernel in found if outer in layer.keys]


def fits(layer: LayerKeys, shapes: Mapping[str, Shape], weight: Shape) -> bool:
    """Whether the tensors change a layer whose weight has this shape: out × in, for convolutions with the kernel behind."""
    try:
        ranks_of(layer, shapes)
    except ValueError:
        return False
    kernel = tuple(weight[2:]) or ONE
    changed = {"LoRA": low_rank_shape, "DoRA": low_rank_shape, "LoHa": hadamard_shape, "LoKr": kronecker_shape}[layer.method]
    if changed(layer.keys, shapes, kernel) != (weight[0], weight[1]):
        return False
    magnitude = layer.keys.get("magnitude")
    return magnitude is None or is_magnitude(magnitude, shapes[magnitude], weight[0])


def low_rank_shape(keys: Mapping[Role, str], shapes: Mapping[str, Shape], kernel: Shape) -> tuple[int, int] | None:
    up, down = shapes[keys["up"]], shapes[keys["down"]]
    mid = shapes[keys["mid"]] if "mid" in keys else None
    kernels = [tuple(shape[2:]) or ONE for shape in (up, down, mid) if shape is not None]
    return (up[0], down[1]) if kernels == ([ONE, kernel] if mid is None else [ONE, ONE, kernel]) else None


def hadamard_shape(keys: Mapping[Role, str], shapes: Mapping[str, Shape], kernel: Shape) -> tuple[int, int] | None:
    one, two = (product_shape(keys, shapes, kernel, f"hada_w{number}", f"hada_t{number}") for number in (1, 2))
    return one if one == two else None


def kronecker_shape(keys: Mapping[Role, str], shapes: Mapping[str, Shape], kernel: Shape) -> tuple[int, int] | None:
    """Of the product of Kronecker: `lokr_w1` has no kernel."""
    one = product_shape(keys, shapes, ONE, "lokr_w1", "lokr_t1")
    two = product_shape(keys, shapes, kernel, "lokr_w2", "lokr_t2")
    return (one[0] * two[0], one[1] * two[1]) if one and two else None


def product_shape(keys: Mapping[Role, str], shapes: Mapping[str, Shape], kernel: Shape, name: str, core: str) -> tuple[int, int] | None:
    """out × in of a matrix that is whole, a product of two, or of two with a kernel between them (then the first is rank × out)."""
    by_role: dict[str, Shape] = {role: shapes[key] for role, key in keys.items()}
    if whole := by_role.get(name):
        return (whole[0], whole[1]) if (tuple(whole[2:]) or ONE) == tuple(kernel) else None
    outer, inner = by_role[f"{name}_a"], by_role[f"{name}_b"]
    if len(outer) != 2 or len(inner) != 2:
        return None
    if core in by_role:
        return (outer[1], inner[1]) if (tuple(by_role[core][2:]) or ONE) == tuple(kernel) else None
    area = kernel[0] * kernel[1]
    return (outer[0], inner[1] // area) if inner[1] % area == 0 else None


def is_magnitude(key: str, shape: Shape, outputs: int) -> bool:
    """Whether DoRA's magnitude has one number for an output; LyCORIS can write one for an input instead.

    LyCORIS puts the outputs on the first axis, PEFT on the only one, or on the second of a convolution.
    """
    if key.endswith(".dora_scale"):
        return tuple(shape) == (outputs, *(1 for _ in shape[1:]))
    return tuple(shape) in ((outputs,), (1, outputs, 1, 1))
