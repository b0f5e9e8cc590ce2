"""Text encoders that wait in the main memory encode as those on the device. The device is `meta`, where a tensor that was left behind is an
error, or another copy in the main memory, where values can be compared.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engines.diffusion import text_encoders
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.lora.slots import LoraSlots
from actors.engines.diffusion.text_encoders import FALLBACK, OffloadMode, TextEncoders, copied_to
from tests.support.family_orders import TINY, write_family_loras
from tests.support.family_rows import load_family, make_order

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

FAMILIES = ("tiny-sd15", "tiny-sdxl", "tiny-sd3", "tiny-flux", "tiny-qwen-image")


def devices(family: Family) -> dict[str, str]:
    parts = {name: part for name, part in family.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {name: next(part.parameters()).device.type for name, part in parts.items()}


def open_encoders(name: str = "tiny-sd15", mode: OffloadMode = "auto", device: str = "meta") -> tuple[Family, TextEncoders]:
    family = load_family(name)
    return family, TextEncoders(family, device, mode)


def as_if_on_a_device(encoders: TextEncoders) -> None:
    """They wait, and the device that they are copied to is the CPU, on which values can be compared."""
    encoders.offloaded, encoders.device = True, "cpu"


@pytest.mark.parametrize("name", FAMILIES)
def test_always_leaves_the_text_encoders_behind(name: str) -> None:
    family, encoders = open_encoders(name, "always")
    encoders.place()
    assert encoders.offloaded
    assert {part: device for part, device in devices(family).items() if device == "cpu"}.keys() == encoders.encoders.keys()


@pytest.mark.parametrize("mode", ["auto", "never"])
def test_with_enough_memory_all_parts_are_on_the_device(mode: OffloadMode) -> None:
    family, encoders = open_encoders("tiny-flux", mode)
    encoders.place()
    assert set(devices(family).values()) == {"meta"}
    assert not encoders.offloaded


def test_auto_leaves_them_behind_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, expected in (("auto", True), ("never", False)):
        family, encoders = open_encoders("tiny-flux", mode)  # type: ignore[arg-type]
        big, move = family.pipeline.text_encoder_2, family.pipeline.text_encoder_2.to

        def fail_on_device(device: str, move: Any = move) -> Any:
            if device == "meta":
                raise MemoryError
            return move(device)

        monkeypatch.setattr(big, "to", fail_on_device)
        monkeypatch.setattr(family.pipeline.text_encoder, "to", lambda device: None)
        if expected:
            encoders.place()
        else:
            with pytest.raises(MemoryError):
                encoders.place()
        assert encoders.offloaded is expected


def test_on_a_cpu_they_stay_where_they_are() -> None:
    _, encoders = open_encoders(mode="always", device="cpu")
    encoders.place()
    assert not encoders.offloaded
    assert encoders.offload_as_fallback(set()) is None


def test_the_fallback_is_applied_once_and_has_a_name() -> None:
    applied: set[str] = set()
    _, encoders = open_encoders()
    for module in encoders.encoders.values():
        module.to("cpu")
    assert encoders.offload_as_fallback(applied) == FALLBACK
    assert encoders.offload_as_fallback(applied) is None
    assert applied == {FALLBACK}
    _, never = open_encoders(mode="never")
    assert never.offload_as_fallback(set()) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_conditions_are_the_same_and_the_weights_keep_their_place(name: str) -> None:
    family = load_family(name, torch.float32)
    request = make_order(family, "a red house")
    with torch.inference_mode():
        expected = family.encode(request)
        encoders = TextEncoders(family, "meta", "auto")
        before = {id(weight) for module in encoders.encoders.values() for weight in module.parameters()}
        as_if_on_a_device(encoders)
        conditions = family.encode(request)
    assert before == {id(weight) for module in encoders.encoders.values() for weight in module.parameters()}
    for one, other in zip(expected, conditions, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_all_of_an_encoder_is_on_the_device_while_it_encodes_also_its_loras(tmp_path: Path) -> None:
    """On `meta` an operation with a tensor of the CPU is an error, so that this shows that nothing was left behind."""
    family = load_family("tiny-sd15", torch.float32)
    loras = LoraSlots(family, 8)
    files = write_family_loras(TINY["tiny-sd15"], family.pipeline, tmp_path).values()
    [(adapter, _)] = loras.text_adapters(tuple((loras.acquire(file), 1.0) for file in files))[:1]
    encoder = family.pipeline.text_encoder
    tokens = torch.zeros(1, 77, dtype=torch.long)
    with torch.inference_mode(), copied_to("meta", [encoder]):
        assert {weight.device.type for weight in (*encoder.parameters(), *encoder.buffers())} == {"meta"}
        loras.set_row_adapters([((adapter, 1.0),)])
        assert encoder(tokens.to("meta"))[0].device.type == "meta"
    assert {weight.device.type for weight in (*encoder.parameters(), *encoder.buffers())} == {"cpu"}
    with torch.inference_mode():
        loras.set_row_adapters([((adapter, 1.0),)])
        changed = encoder(tokens)[0]
        loras.set_row_adapters(None)
        assert not torch.equal(changed, encoder(tokens)[0])


def test_weights_have_their_place_again_after_an_error() -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(MemoryError), copied_to("meta", [module]):
        raise MemoryError
    assert module.weight.device.type == "cpu"


def test_tied_weights_are_copied_once_and_stay_tied() -> None:
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    second.weight = first.weight
    with copied_to("meta", [first, second]):
        assert first.weight is second.weight
    assert first.weight is second.weight


@pytest.mark.parametrize(("free", "offloaded"), [(99, True), (100, False)])
def test_auto_compares_what_is_free_with_what_a_picture_takes(monkeypatch: pytest.MonkeyPatch, free: int, offloaded: bool) -> None:
    _, encoders = open_encoders(device="cuda:0")
    memory = type("Cuda", (), {
        "reset_peak_memory_stats": lambda device: None, "memory_allocated": lambda device: 1000,
        "max_memory_allocated": lambda device: 1100, "mem_get_info": lambda device: (free, 5000), "is_available": lambda: False,
    })  # fmt: skip
    monkeypatch.setattr(text_encoders.torch, "cuda", memory)
    drawn: list[bool] = []
    encoders.offload_if_short(lambda: drawn.append(True))
    assert (encoders.offloaded, drawn) == (offloaded, [True])
