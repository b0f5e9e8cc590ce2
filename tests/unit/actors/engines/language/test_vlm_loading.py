"""How the weights of a vision model are loaded: quantization by device and setting, placement, and what the log says."""

from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from actors.engines.language import loading
from actors.engines.language.loading import choose_quantization, load_arguments, load_model
from actors.engines.language.requests import VlmOptions
from actors.engines.language.tiny_llava import write_tiny_llava
from actors.vision.settings import VlmSettings
from tests.support.engine_fixture import silent_host

pytestmark = [
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

GIBIBYTE = 1 << 30
UNREAD: Any = None
"""The family where no picture is read."""


@pytest.fixture
def log_output() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as entries:
        yield entries


def options_with(monkeypatch: pytest.MonkeyPatch, model: str = "org/llava", **environment: str) -> VlmOptions:
    """The options that a worker with these variables has."""
    for name in ("VLM_QUANTIZATION", "USE_QUANTIZATION", "AIP_MODE", "DEVICE_TYPE", "VLM_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return VlmSettings().build_options(model)


@pytest.mark.parametrize(
    ("environment", "on_cuda", "on_cpu"),
    [
        ({}, "8bit", "none"),
        ({"USE_QUANTIZATION": "true"}, "8bit", "none"),
        ({"USE_QUANTIZATION": "false"}, "none", "none"),
        ({"AIP_MODE": "PREDICTION"}, "none", "none"),
        ({"AIP_MODE": "PREDICTION", "USE_QUANTIZATION": "true"}, "8bit", "none"),
        ({"VLM_QUANTIZATION": "none", "USE_QUANTIZATION": "true"}, "none", "none"),
        ({"VLM_QUANTIZATION": "4bit"}, "4bit", "4bit"),
        ({"VLM_QUANTIZATION": "8bit", "USE_QUANTIZATION": "false"}, "8bit", "8bit"),
    ],
)
def test_quantization_depends_on_device_and_names(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], on_cuda: str, on_cpu: str
) -> None:
    """On a CPU only when it is asked for by name."""
    options = options_with(monkeypatch, **environment)
    assert [choose_quantization(options, device)[0] for device in ("cuda:0", "cpu")] == [on_cuda, on_cpu]


def test_load_arguments_on_cuda_and_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers gets, field by field."""
    options = options_with(monkeypatch, USE_QUANTIZATION="true")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (79 * GIBIBYTE, 80 * GIBIBYTE))

    eight_bit = load_arguments(options, "cuda:1", "8bit")
    assert (eight_bit["quantization_config"].load_in_8bit, eight_bit["dtype"]) == (True, torch.float16)
    assert eight_bit["device_map"] == {"": "cuda:1"}
    four_bit = load_arguments(options, "cuda:0", "4bit")["quantization_config"]
    assert (four_bit.load_in_4bit, four_bit.bnb_4bit_quant_type) == (True, "nf4")
    half = load_arguments(options, "cuda:0", "none")
    assert ("quantization_config" in half, half["dtype"], half["device_map"]) == (False, torch.float16, {"": "cuda:0"})
    full = load_arguments(options, "cpu", choose_quantization(options, "cpu")[0])
    assert ("quantization_config" in full, full["dtype"], full["device_map"]) == (False, torch.float32, {"": "cpu"})


def test_model_that_does_not_fit_is_split_within_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    options = options_with(monkeypatch, str(tmp_path))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 4000))
    split = load_arguments(options, "cuda:1", "none")
    assert split["device_map"] == "auto"
    assert (split["max_memory"][1], split["max_memory"]["cpu"] > GIBIBYTE // 8) == (900, True)

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3000, 4000))
    assert load_arguments(options, "cuda:1", "none")["device_map"] == {"": "cuda:1"}
    limited = options_with(monkeypatch, str(tmp_path), VLM_MAX_MEMORY_BYTES="700")
    assert load_arguments(limited, "cuda:1", "none")["max_memory"][1] == 700


def test_failed_quantization_on_cuda_loads_within_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second attempt has no quantization and its limit of memory."""
    calls: list[dict[str, Any]] = []

    def load(options: VlmOptions, device: str, quantization: Any) -> str:
        calls.append(load_arguments(options, device, quantization))
        if quantization != "none":
            raise ImportError("bitsandbytes is not installed")
        return "model"

    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 4000))
    monkeypatch.setattr(loading, "_load", load)
    model, quantization = loading._load_weights(options_with(monkeypatch, str(tmp_path)), "cuda:0", UNREAD)

    assert (model, quantization["quantization"]) == ("model", "none")
    assert "bitsandbytes is not installed" in quantization["fallback"]
    assert ["quantization_config" in arguments for arguments in calls] == [True, False]
    assert calls[1]["max_memory"][0] == 900


def test_use_quantization_leaves_a_model_on_a_cpu_as_it_is_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log_output: list[MutableMapping[str, Any]]
) -> None:
    """The lines of the ad pipeline's log are found, with the memory that the load took."""
    write_tiny_llava(tmp_path, hidden_size=64)
    loaded = load_model(options_with(monkeypatch, str(tmp_path), USE_QUANTIZATION="true"), silent_host(tmp_path))

    layers = {type(module).__name__ for module in loaded.model.modules()}
    assert ("Linear" in layers, layers & {"Linear8bitLt", "Linear4bit"}) == (True, set())
    entries = {entry["event"]: entry for entry in log_output}
    assert entries["model.loading"]["message"] == f"Loading LLaVa model: {tmp_path} on cpu"
    assert entries["model.quantization"]["message"] == "Quantization setting: Disabled"
    assert "never on a CPU" in entries["model.quantization"]["reason"]
    after = entries["model.loaded"]
    assert 0 < after["allocated_bytes"] <= after["peak_bytes"] < after["total_bytes"]
    assert after["share"] == pytest.approx(after["allocated_bytes"] / after["total_bytes"], abs=1e-3)
    assert "allocated" in after["message"]
    assert len([entry for entry in log_output if "Loading LLaVa model" in str(entry)]) == 1


def test_quantization_by_name_is_used_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log_output: list[MutableMapping[str, Any]]
) -> None:
    write_tiny_llava(tmp_path, hidden_size=64)
    loaded = load_model(options_with(monkeypatch, str(tmp_path), VLM_QUANTIZATION="8bit"), silent_host(tmp_path))

    assert "Linear8bitLt" in {type(module).__name__ for module in loaded.model.modules()}
    assert loaded.info["quantization"] == "8bit"
    messages = [entry["message"] for entry in log_output]
    assert "Quantization setting: Enabled (8-bit)" in messages
    assert [message for message in messages if message.startswith("Model loaded with 8-bit quantization")]
