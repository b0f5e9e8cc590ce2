"""Adapters of rows on single layers against PEFT's own layers, in double precision: LoRA, DoRA, LoHa and LoKr, alone and composed."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from actors.engines.diffusion.batching import RowAdapters
from actors.engines.diffusion.lora import stacking
from actors.engines.diffusion.lora.slots import LoraSlots, check_slots
from actors.engines.diffusion.lora.strength import parse_adapter_config
from actors.engines.diffusion.requests import LoraFile
from bus.errors import PermanentError

pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

EXACT = 1e-12
"""Scales of LoHa are eighths, since PEFT rounds them to float32."""
WIDTH = 12


class Net(torch.nn.Module):  # type: ignore[misc]
    """A linear layer on N × tokens × 12, one without a bias on N × 12, and convolutions on N × 12 × 6 × 6."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Linear(WIDTH, 18)
        self.plain = torch.nn.Linear(WIDTH, 8, bias=False)
        self.conv = torch.nn.Conv2d(WIDTH, 8, 3, stride=2, padding=1)
        self.point = torch.nn.Conv2d(WIDTH, 6, 1)

    def forward(self, tokens: torch.Tensor, vectors: torch.Tensor, pictures: torch.Tensor) -> list[torch.Tensor]:
        return [self.wide(tokens), self.plain(vectors), self.conv(pictures), self.point(pictures)]


LINEAR, ALL = ["wide", "plain"], ["wide", "plain", "conv", "point"]


@dataclass
class NetFamily:
    pipeline: Any
    name: str = "Net"
    denoiser_part: str = "transformer"
    lora_prefixes: dict[str, str] = field(default_factory=lambda: {"base_model.model.": "transformer", "": "transformer"})
    aliases: ClassVar[tuple[Any, ...]] = ()

    def lora_aliases(self, part: str, layer: str) -> Any:
        return iter(self.aliases)

    def lora_excluded(self, part: str, layer: str) -> bool:
        return False


def net_family() -> Any:
    return NetFamily(SimpleNamespace(transformer=make_net()))


def make_net() -> Any:
    torch.manual_seed(0)
    return Net().double().eval()


def inputs(rows: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = ((rows, 5, WIDTH), (rows, WIDTH), (rows, WIDTH, 6, 6))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def adapter_configs() -> dict[str, Any]:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    return {
        "lora": LoraConfig(r=3, lora_alpha=5, target_modules=ALL),
        "lora of rank 5": LoraConfig(r=5, lora_alpha=2, target_modules=LINEAR, use_rslora=True),
        "dora": LoraConfig(r=2, lora_alpha=3, target_modules=ALL, use_dora=True),
        "second dora": LoraConfig(r=4, lora_alpha=1, target_modules=LINEAR, use_dora=True),
        "loha": LoHaConfig(r=2, alpha=3, target_modules=ALL, init_weights=False),
        "loha of high rank": LoHaConfig(r=4, alpha=3, target_modules=ALL, init_weights=False),
        "linear loha": LoHaConfig(r=2, alpha=1, target_modules=LINEAR, init_weights=False),
        "linear loha of high rank": LoHaConfig(r=4, alpha=2, target_modules=LINEAR, init_weights=False),
        "linear lokr": LoKrConfig(r=1, alpha=3, target_modules=LINEAR, init_weights=False, decompose_both=True),
        "loha, tucker": LoHaConfig(r=2, alpha=3, target_modules=["conv"], init_weights=False, use_effective_conv2d=True),
        "lokr": LoKrConfig(r=2, alpha=3, target_modules=ALL, init_weights=False),
        "lokr of two products": LoKrConfig(r=1, alpha=3, target_modules=ALL, init_weights=False, decompose_both=True),
        "lokr of whole matrices": LoKrConfig(r=16, alpha=8, target_modules=ALL, init_weights=False),
        "lokr, tucker": LoKrConfig(r=1, alpha=3, target_modules=["conv"], init_weights=False, use_effective_conv2d=True),
    }


def randomized(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(word in name for word in ("lora_", "hada_", "lokr_")):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(1 + noise.abs() if "magnitude" in name else 0.4 * noise)
    return model.double().eval()


def save_adapter(name: str, folder: Path) -> LoraFile:
    """As PEFT saves it."""
    from peft import get_peft_model

    model = randomized(get_peft_model(make_net(), adapter_configs()[name]), seed=sum(map(ord, name)))
    path = folder / name
    model.save_pretrained(path)
    to_double(path / "adapter_model.safetensors", model)
    config = parse_adapter_config((path / "adapter_config.json").read_bytes(), name)
    return LoraFile(path / "adapter_model.safetensors", name, 1.0, name, config)


def to_double(path: Path, model: Any) -> None:
    """The weights are float64 in the file already; a file of another precision would hide what is compared."""
    from safetensors.torch import load_file

    assert all(tensor.dtype == torch.float64 for tensor in load_file(path).values()), model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoraFile]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(name, folder) for name in adapter_configs()}


@pytest.fixture
def slots() -> LoraSlots:
    return LoraSlots(net_family(), 16)


def peft_outputs(files: dict[str, LoraFile], row: dict[str, float], number: int, rows: int) -> list[torch.Tensor]:
    """The outputs for one row, of PEFT with these adapters active, in this order."""
    from peft import PeftMixedModel, PeftModel

    mixed = len({files[name].config.peft_type for name in row}) > 1  # type: ignore[union-attr]
    kind = PeftMixedModel if mixed else PeftModel
    model: Any = make_net()
    for name in row:
        folder = str(files[name].path.parent)
        if isinstance(model, Net):
            model = kind.from_pretrained(model, folder, adapter_name=name)
        else:
            model.load_adapter(folder, adapter_name=name)
    if row:
        model.double().eval()
        (model if mixed else model.base_model).set_adapter(list(row))
        for module in model.modules():
            for name, scale in row.items():
                if name in getattr(module, "scaling", {}):
                    module.scaling[name] *= scale
    with torch.no_grad():
        return list(model(*(tensor[number : number + 1] for tensor in inputs(rows))))


def our_outputs(slots: LoraSlots, files: dict[str, LoraFile], rows: list[dict[str, float]]) -> list[torch.Tensor]:
    """The outputs for all rows in one call."""
    names = {name: slots.acquire(files[name]) for row in rows for name in row}
    adapters: list[RowAdapters] = [tuple((names[name], scale) for name, scale in row.items()) for row in rows]
    slots.set_row_adapters(adapters)
    try:
        with torch.no_grad():
            return slots.pipeline.transformer(*inputs(len(rows)))  # type: ignore[no-any-return]
    finally:
        slots.set_row_adapters(None)
        for name in names:
            slots.release(files[name])


def difference(slots: LoraSlots, files: dict[str, LoraFile], rows: list[dict[str, float]]) -> float:
    """The greatest relative difference between our rows and PEFT's."""
    ours = our_outputs(slots, files, rows)
    worst = 0.0
    for number, row in enumerate(rows):
        for own, theirs in zip(ours, peft_outputs(files, row, number, len(rows)), strict=True):
            worst = max(worst, float((own[number : number + 1] - theirs).abs().max() / theirs.abs().max()))
    return worst


@pytest.mark.parametrize("name", adapter_configs())
def test_each_method_is_computed_as_in_peft(slots: LoraSlots, files: dict[str, LoraFile], name: str) -> None:
    rows: list[dict[str, float]] = [{name: 1.0}, {}, {name: -0.75}, {name: 1.0}]
    assert difference(slots, files, rows) < EXACT
    assert difference(slots, files, [{name: 0.625}, {name: 0.625}]) < EXACT, "all rows alike"
    plain, changed = make_net()(*inputs(1)), our_outputs(slots, files, [{name: 1.0}])
    assert any(float((before - after).abs().max()) > 0.1 for before, after in zip(plain, changed, strict=True))
    assert len(slots) == 1


def test_adapters_of_a_row_are_composed_as_in_peft(slots: LoraSlots, files: dict[str, LoraFile]) -> None:
    """DoRA scales what the adapters before it added, so the order counts."""
    rows = [
        {"lora": 0.8, "lora of rank 5": -0.5},
        {"lora": 0.8, "dora": 0.7},
        {"dora": 0.7, "lora": 0.8},
        {"dora": 1.2, "second dora": 0.5},
        {"second dora": 0.5, "dora": 1.2, "lora": 0.3},
    ]
    assert difference(slots, files, rows) < EXACT
    outputs = our_outputs(slots, files, [rows[1], rows[2]])[0]
    assert float((peft_outputs(files, rows[1], 0, 2)[0] - outputs[:1]).abs().max()) < EXACT
    assert float((peft_outputs(files, rows[1], 1, 2)[0] - outputs[1:]).abs().max()) > 1e-3


def test_methods_that_add_are_composed_as_in_peft(slots: LoraSlots, files: dict[str, LoraFile]) -> None:
    """On linear layers: PEFT cannot put two methods on one convolution."""
    rows = [
        {"lora of rank 5": 0.8, "linear loha": 0.5},
        {"linear lokr": 0.7, "linear loha of high rank": -0.25, "lora of rank 5": 0.4},
        {"lora": 1.0},
    ]
    assert difference(slots, files, rows) < EXACT


@pytest.mark.parametrize("seed", range(6))
def test_random_mixes_of_rows_are_those_of_peft(slots: LoraSlots, files: dict[str, LoraFile], seed: int) -> None:
    """The same rows in another order, and one by one, too: calls with other rows leave nothing behind."""
    chance = random.Random(seed)
    groups = [
        ["lora", "lora of rank 5", "dora", "second dora"],
        ["lora of rank 5", "linear loha", "linear lokr", "linear loha of high rank"],
    ]
    rows: list[dict[str, float]] = []
    for _ in range(5):
        names = chance.sample(chance.choice(groups), chance.randint(0, 3))
        rows.append({name: chance.randint(-8, 8) / 8 for name in names})
    assert difference(slots, files, rows) < EXACT
    chance.shuffle(rows)
    assert difference(slots, files, rows) < EXACT
    assert difference(slots, files, rows[:1]) < EXACT


def test_dora_before_a_method_that_adds_scales_only_what_is_before_it(slots: LoraSlots, files: dict[str, LoraFile]) -> None:
    """No layer of PEFT has DoRA and LoHa at once, so this is written out: m / |W + D| · (W + D) + H."""
    outputs = our_outputs(slots, files, [{"dora": 0.7, "loha": 0.5}, {"loha": 0.5, "dora": 0.7}])[1]
    base, dora, loha = (our_outputs(slots, files, [row, row])[1] for row in ({}, {"dora": 0.7}, {"loha": 0.5}))
    assert torch.allclose(outputs[:1], (dora + loha - base)[:1], rtol=0, atol=EXACT)
    change = slots._slots[files["dora"].slot_key].changes["transformer", "plain"]
    layer = slots.pipeline.transformer.plain
    norm = (layer.weight + 0.7 * change.strength * change.delta.weight()).norm(dim=1)  # type: ignore[union-attr]
    assert torch.allclose(outputs[1:], (dora + (loha - base) * change.magnitude / norm)[1:], rtol=0, atol=EXACT)


def test_same_file_twice_in_a_row_adds_up(slots: LoraSlots, files: dict[str, LoraFile]) -> None:
    name = slots.acquire(files["lora"])
    slots.set_row_adapters([((name, 0.5), (name, 0.25)), ((name, 0.75),)])
    same = [tensor[:1].expand(2, *tensor.shape[1:]) for tensor in inputs(2)]
    for output in slots.pipeline.transformer(*same):
        assert torch.allclose(output[0], output[1], rtol=0, atol=EXACT)


def test_large_stacks_are_multiplied_once_for_equal_rows(
    slots: LoraSlots, files: dict[str, LoraFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"lora": 0.8}, {"lora of rank 5": 0.2, "lora": 1.0}, {"lora": 0.8}, {}]
    for name in ("lora", "lora of rank 5"):
        slots.acquire(files[name])
    expected = our_outputs(slots, files, rows)
    assert max(pair.down.dim() for layer in slots._stacked._calls.popitem()[1].values() if layer for pair in layer.pairs) == 3
    monkeypatch.setattr(stacking, "MAX_BATCH_BYTES", 100)
    for own, other in zip(our_outputs(slots, files, rows), expected, strict=True):
        assert torch.allclose(own, other, rtol=0, atol=EXACT)
    assert {pair.down.dim() for layer in slots._stacked._calls.popitem()[1].values() if layer for pair in layer.pairs} == {2}


def test_adapters_in_memory_are_no_larger_than_their_files(slots: LoraSlots, files: dict[str, LoraFile]) -> None:
    """But a LoHa of a low rank, of which a pair is kept: up to four times as much."""
    for name in adapter_configs():
        before = slots.size_bytes
        slots.acquire(files[name])
        factor = 1.0 if name in ("loha", "linear loha") else 0.0
        assert slots.size_bytes - before <= files[name].path.stat().st_size * (1 + factor), name


def test_layer_that_is_called_without_an_axis_of_rows_is_an_error(slots: LoraSlots, files: dict[str, LoraFile]) -> None:
    slots.set_row_adapters([((slots.acquire(files["lora"]), 1.0),), ()])
    with pytest.raises(RuntimeError, match=r"transformer.wide is called with 3 rows, not with 2"):
        slots.pipeline.transformer(*inputs(3))


def test_slots_are_found_for_all_files_of_an_order_at_once(files: dict[str, LoraFile]) -> None:
    slots = LoraSlots(net_family(), 2)
    one, two, three = (files[name] for name in ("lora", "loha", "lokr"))
    assert slots.has_slots_for([one, two])
    assert slots.has_slots_for([one, one, two]), "the same file takes one slot"
    assert not slots.has_slots_for([one, two, three])
    first = slots.acquire(one)
    assert slots.has_slots_for([two])
    assert not slots.has_slots_for([two, three])
    slots.acquire(two)
    slots.release(two)
    assert slots.has_slots_for([one, three]), "a slot without users is free"
    assert not slots.has_slots_for([two, three])
    assert slots.acquire(one) == first
    assert slots.loads == 2
    slots.acquire(three)
    assert len(slots) == 2
    assert slots.size_bytes > 0
    check_slots([one, one, two], 2)
    with pytest.raises(PermanentError, match=r"the order has 3 LoRAs, a model has 2 slots.*IMAGE_LORA_SLOTS") as raised:
        check_slots([one, two, three], 2)
    assert raised.value.code == "lora-invalid"


def test_description_has_the_values_of_all_files_in_their_order(slots: LoraSlots, files: dict[str, LoraFile]) -> None:
    chosen = [files["lora of rank 5"], files["loha"]]
    for file in chosen:
        slots.acquire(file)
    assert slots.describe(chosen) == {
        "lora_sha256": "lora of rank 5,loha", "lora_scale": "1,1", "lora_scaling": "0.894427,1.5",
        "lora_alpha_from": "adapter_config,adapter_config",
    }  # fmt: skip
    assert slots.describe([]) == {}


def test_clear_leaves_the_model_as_it_was(slots: LoraSlots, files: dict[str, LoraFile]) -> None:
    net, plain = slots.pipeline.transformer, make_net()(*inputs(1))
    slots.set_row_adapters([((slots.acquire(files["dora"]), 1.0),)])
    assert float((net(*inputs(1))[0] - plain[0]).abs().max()) > 0.1
    slots.clear()
    assert all(bool((before == after).all()) for before, after in zip(plain, net(*inputs(1)), strict=True))
    assert len(slots) == 0
    assert slots.pipeline is None


def test_configuration_of_another_method_than_the_weights_is_refused(slots: LoraSlots, files: dict[str, LoraFile]) -> None:
    for name, change, reason in (
        ("loha", {"peft_type": "LORA"}, "one of LORA, its weights for .* are LoHa"),
        ("lora", {"use_dora": True}, "one of DoRA, its weights for .* are LoRA"),
        ("dora", {"use_dora": False}, "one of LORA, its weights for .* are DoRA"),
        ("lokr", {"r": 7}, "the rank 7, its weights have 2"),
    ):
        config = json.loads((files[name].path.parent / "adapter_config.json").read_text()) | change
        file = LoraFile(files[name].path, name, 1.0, name, parse_adapter_config(json.dumps(config).encode(), name))
        with pytest.raises(PermanentError, match=reason) as raised:
            slots.acquire(file)
        assert raised.value.code == "lora-invalid"
