"""Errors of the device and of a request are kept apart: no text of a client ends the model process, a lost device makes no dead letters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.requests import DiffusionRequest, LoraFile
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.failures import exit_cause, is_device_failure
from actors.engines.process.protocol import EngineHost, EngineSpec, Failed, Finished, MemoryExhausted
from actors.engines.settings import ExecutorSettings, ImageSettings
from bus.errors import EngineCrashed, PermanentError, TemporaryError
from ops.local.tiny_models import make_tiny_models
from tests.support.engine_fixture import lora_file, open_image_engine, run_to_end
from tests.support.faulty_engine import FaultyRequest

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_tiny_models(tmp_path_factory.mktemp("models"))


# -- what a client writes is no error of the device


@pytest.mark.parametrize("text", ["CUDA error", "out of memory", "CUBLAS_STATUS", "device-side assert"])
def test_text_of_a_client_is_no_device_failure(text: str) -> None:
    """vllm-project/vllm #11727 is of the kind: the error of one request ends the engine of all."""
    for error in (PermanentError("lora-invalid", text), TemporaryError(text), ValueError(text), KeyError(text)):
        assert not is_device_failure(error)
        assert exit_cause(error) == "error"
    assert is_device_failure(RuntimeError(f"torch says: {text}"))


@pytest.mark.models
@pytest.mark.parametrize("where", ["file name", "key"])
def test_lora_that_is_named_like_a_device_failure_fails_alone(models: dict[str, Path], tmp_path: Path, where: str) -> None:
    """The name of a file, and a key of one whose model is not in memory, are in the error of the order. Its neighbour is drawn."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(models["tiny-lora-a"])
    if where == "key":
        tensors = {f"lora_unet_cuda error.lora_{half}.weight": torch.zeros(2, 2) for half in ("down", "up")}
    else:
        tensors = {key: torch.full_like(tensor, float("nan")) for key, tensor in tensors.items()}
    file = tmp_path / "cublas_status out of memory.safetensors"
    save_file(tensors, file)
    engine = open_image_engine(models, tmp_path / "shm", models={"two": str(models["tiny-sd"])}, warm=False)
    settings: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}
    engine.submit(1, DiffusionRequest("a cat", 1, model="two", loras=(LoraFile(file, "0" * 64, 1.0, file.name),), **settings))
    engine.submit(2, DiffusionRequest("a cat", 2, **settings))
    events = run_to_end(engine, [1, 2])
    engine.close()
    assert isinstance(events[1], Failed)
    assert (events[1].kind, events[1].code) == ("permanent", "lora-invalid")
    assert isinstance(events[2], Finished)


@pytest.mark.models
@pytest.mark.parametrize(("with_lora", "kind"), [(True, "permanent"), (False, "temporary")])
def test_picture_of_a_lora_that_is_no_numbers_is_not_tried_again(
    models: dict[str, Path], tmp_path: Path, with_lora: bool, kind: str
) -> None:
    """huggingface/diffusers #5316: a LoRA that is too strong overflows each time; without one another worker's dtype may do."""
    engine = open_image_engine(models, tmp_path / "shm")
    unet = engine.models.default().family.pipeline.unet
    forward = unet.forward
    unet.forward = lambda *arguments, **options: (forward(*arguments, **options)[0] * float("nan"),)
    lora = lora_file(models, "a") if with_lora else None
    engine.submit(1, DiffusionRequest("a cat", 1, width=64, height=64, steps=1, loras=(lora,) if lora else ()))
    event = run_to_end(engine, [1])[1]
    engine.close()
    assert isinstance(event, Failed)
    assert (event.kind, event.code) == (kind, "picture-not-finite")


# -- a lost device


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("too much"), "memory"),
        (MemoryExhausted("every fallback"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), "error"),
        (RuntimeError("decoding one order took longer than 60 s"), "error"),
    ],
)
def test_cause_of_an_exit(error: Exception, cause: str) -> None:
    assert exit_cause(error) == cause


@asynccontextmanager
async def open_faulty(unready: list[str | None], options: dict[str, Any] | None = None) -> AsyncIterator[Executor]:
    limits = ExecutorSettings(step_seconds=5.0, first_wait_seconds=0.05, longest_wait_seconds=20.0, failures_before_open=3)
    spec = EngineSpec("tests.support.faulty_engine:open_faulty_engine", options)
    async with open_executor(spec, limits, max_in_flight=20, capacity=4, set_unready=unready.append) as executor:
        await executor.ready()
        yield executor


async def run_all(executor: Executor, fault: str, count: int = 6) -> list[Any]:
    requests = [executor.run(FaultyRequest(fault=fault)) for _ in range(count)]
    return await asyncio.gather(*requests, return_exceptions=True)


async def test_lost_device_makes_no_dead_letters_and_opens_the_breaker() -> None:
    """huggingface/diffusers #8520 is of the kind: after one launch failure every further order of the device fails."""
    unready: list[str | None] = []
    async with open_faulty(unready) as executor:
        outcomes = await run_all(executor, "device")
        assert {type(outcome) for outcome in outcomes} <= {TemporaryError, EngineCrashed}
        assert EngineCrashed in {type(outcome) for outcome in outcomes}
        assert not executor.healthy
        assert executor.stats.exits == {"device": 3}
    assert "launch failure" in str(unready[-1])


async def test_memory_that_runs_out_anywhere_is_a_temporary_error() -> None:
    """Also outside the places with fallbacks, where it is torch's own error that ends the process."""
    async with open_faulty([]) as executor:
        outcomes = await run_all(executor, "torch-memory", 2)
        assert [getattr(outcome, "code", "") for outcome in outcomes] == ["out-of-memory"] * 2


async def test_device_that_crashes_each_process_is_found_by_the_test_after_a_crash() -> None:
    """No error says that the device is at fault: after a crash the engine is tested with a request's work, and no order runs then."""
    unready: list[str | None] = []
    async with open_faulty(unready, {"sick_device": True}) as executor:
        outcomes = await run_all(executor, "segfault")
        assert [type(outcome) for outcome in outcomes] == [EngineCrashed] * 6
        assert not executor.healthy


@pytest.mark.models
def test_diffusion_engine_draws_a_full_picture_after_a_crash(models: dict[str, Path], tmp_path: Path) -> None:
    settings = ImageSettings(model=str(models["tiny-sd"]))
    engine = DiffusionEngine(settings, EngineHost(lambda *_: None, lambda: None, tmp_path, after_crash=True))
    engine.self_test()
    pipeline = engine.models.default().family.pipeline
    pipeline.unet.forward = fail_for_full_size(pipeline.unet.forward, pipeline.unet.config.sample_size)
    with pytest.raises(RuntimeError, match="launch failure"):
        engine.self_test()
    engine.close()


def fail_for_full_size(forward: Any, size: int) -> Any:
    def changed(sample: Any, *arguments: Any, **options: Any) -> Any:
        if sample.shape[-1] >= size:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return forward(sample, *arguments, **options)

    return changed
