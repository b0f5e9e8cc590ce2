"""The promises of the ad-validation pipeline about its model: loading, quantization, monitoring, settings. The routes follow in
`test_ad_validation.py`."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from actors.engines.language import loading
from actors.engines.language.loading import choose_quantization, load_arguments
from actors.vision.settings import VlmSettings
from ops.registry import processes_of
from tests.support.promises import not_tried

promise = pytest.mark.promise


@promise("Model loading", "the model is loaded once, also by requests at the same time, and shared by both stages")
def test_one_process_serves_both_stages_with_one_model() -> None:
    """tests/integration/test_vision_process.py counts the loads over the whole stack."""
    assert processes_of(["validate", "judge", "consult"]) == ["vision"]


@promise(
    "Model loading",
    "lazy loading: the model is loaded when it is needed",
    differs="at the start, which shows errors; VLM_WARM=false is lazy",
)
def test_lazy_loading_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VlmSettings().warm
    monkeypatch.setenv("VLM_WARM", "false")
    assert not VlmSettings().warm


@promise("8-bit quantization", "on CUDA the weights have 8 bits by default; USE_QUANTIZATION=true or false decides")
@promise("8-bit quantization", "without CUDA nothing is quantized")
def test_weights_have_eight_bits_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, on_cuda in ((None, "8bit"), ("true", "8bit"), ("false", "none")):
        with monkeypatch.context() as patch:
            patch.delenv("AIP_MODE", raising=False)
            if value:
                patch.setenv("USE_QUANTIZATION", value)
            options = VlmSettings().build_options("a-model")
        assert [choose_quantization(options, device)[0] for device in ("cuda:0", "cpu")] == [on_cuda, "none"]


@promise("8-bit quantization", "computation in half precision, weights placed on the GPU by themselves")
@pytest.mark.models
def test_eight_bits_are_those_of_bitsandbytes() -> None:
    arguments = load_arguments(VlmSettings().build_options("a-model"), "cuda:0", "8bit")
    assert (arguments["quantization_config"].load_in_8bit, str(arguments["dtype"])) == (True, "torch.float16")


@promise("8-bit quantization", "when quantizing fails, the model is loaded in half precision within a limit of memory")
@pytest.mark.models
def test_failed_quantization_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(options: Any, device: str, quantization: str) -> str:
        if quantization != "none":
            raise ImportError("bitsandbytes is not installed")
        return "model in half precision"

    monkeypatch.setattr(loading, "_load", load)
    with capture_logs() as entries:
        model, properties = loading._load_weights(VlmSettings().build_options("a-model"), "cuda:0", None)  # type: ignore[arg-type]  # no picture is read
    assert (model, properties["quantization"]) == ("model in half precision", "none")
    lines = [entry["message"] for entry in entries if "message" in entry]
    assert lines == ["Quantization setting: Enabled (8-bit)", "8-bit quantization failed. Falling back to standard loading"]


@promise("Monitoring", "the log has allocated, peak and total memory of the GPU and the share in use")
@promise("Monitoring", "the log says once that the model is loaded, and whether it is quantized")
def test_log_line_of_a_loaded_model() -> None:
    """The line that says so once is counted over the whole stack in tests/integration/test_vision_process.py."""
    info = {"quantization": "8bit", "dtype": "float16", "device": "cuda:0"}
    memory = {"allocated_bytes": 7.23 * 2**30, "peak_bytes": 8.45 * 2**30, "total_bytes": 40 * 2**30, "share": 0.181}
    line = loading.describe_load(info, memory)
    assert (
        line == "Model loaded with 8-bit quantization as float16. GPU memory: allocated 7.23 GB, peak 8.45 GB, total 40.00 GB, usage 18.1%"
    )


DURATIONS_OF_THE_REAL_MODEL = not_tried(
    "needs a GPU and the real model",
    ("Performance", "the model is loaded in one or two minutes, a picture takes 5 to 10 seconds"),
    ("Performance", "8 bits take about half the memory of half precision: 7 GB instead of 14"),
)


@promise("Troubleshooting", "memory: USE_QUANTIZATION, another LLAVA_MODEL_NAME, a limit of the GPU's memory")
@promise("Settings", "LLAVA_MODEL_NAME, MODEL_DIR, DEVICE_TYPE and USE_QUANTIZATION are read as they are")
def test_settings_of_the_document_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLM_MODEL", raising=False)
    values = {"LLAVA_MODEL_NAME": "llava-hf/llava-1.5-13b-hf", "MODEL_DIR": "/models", "DEVICE_TYPE": "cuda", "USE_QUANTIZATION": "false"}
    for name, value in (values | {"VLM_MAX_MEMORY_BYTES": str(20 << 30)}).items():
        monkeypatch.setenv(name, value)
    options = VlmSettings().build_options(VlmSettings().model)
    assert (options.model, str(options.cache_dir), options.device) == ("llava-hf/llava-1.5-13b-hf", "/models", "cuda:0")
    assert (options.quantization, options.max_memory_bytes) == ("none", 20 << 30)
