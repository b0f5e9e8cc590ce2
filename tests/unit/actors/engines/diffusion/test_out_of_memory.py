"""What the diffusion engine does when device memory runs out."""

from typing import Any

import pytest

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.process.protocol import Finished, MemoryExhausted
from tests.support.engine_fixture import StockPipeline, loaded_pipeline, max_pixel_difference, output_images, run_to_end

pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]  # fmt: skip


def make_request(seed: int = 1) -> DiffusionRequest:
    return DiffusionRequest("a lighthouse 등대", seed, width=64, height=64, steps=8)


class MemoryLimit:
    """Replaces a module's forward: more than `max_rows` rows raise OutOfMemoryError."""

    def __init__(self, module: Any, max_rows: int) -> None:
        self.forward, self.max_rows = module.forward, max_rows
        module.forward = self

    def __call__(self, sample: Any, *arguments: Any, **options: Any) -> Any:
        import torch

        if len(sample) > self.max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.forward(sample, *arguments, **options)


def test_low_memory_shrinks_batch_without_changing_images(image_engine: DiffusionEngine, stock_pipeline: StockPipeline) -> None:
    MemoryLimit(loaded_pipeline(image_engine).unet, max_rows=4)
    requests = {number: make_request(number) for number in range(1, 6)}
    for number, request in requests.items():
        image_engine.submit(number, request)
    events = run_to_end(image_engine, requests)
    for number, event in events.items():
        assert max_pixel_difference(output_images(event), stock_pipeline.draw(requests[number])) <= 1
    assert any("batch-" in fallback for fallback in events[5].result.oom_fallbacks)  # type: ignore[union-attr]
    assert image_engine.oom.applied_counts.total() >= 1
    assert image_engine.oom.row_limit == image_engine.settings.max_rows, "the limit is reset when the device is idle"


def test_exhausted_oom_fallbacks_end_process(image_engine: DiffusionEngine) -> None:
    MemoryLimit(loaded_pipeline(image_engine).unet, max_rows=0)
    image_engine.submit(1, make_request())
    with pytest.raises(MemoryExhausted):
        run_to_end(image_engine, [1])
    assert set(image_engine.oom.applied_counts) == {"vae-slicing", "vae-tiling", "attention-slicing"}


def test_decode_out_of_memory_falls_back_to_tiling(image_engine: DiffusionEngine) -> None:
    pipeline = loaded_pipeline(image_engine)
    decode = pipeline.vae.decode

    def decode_with_tiling_only(*arguments: Any, **options: Any) -> Any:
        if not pipeline.vae.use_tiling:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return decode(*arguments, **options)

    pipeline.vae.decode = decode_with_tiling_only
    image_engine.submit(1, make_request())
    event = run_to_end(image_engine, [1])[1]
    assert isinstance(event, Finished)
    assert event.result.oom_fallbacks == ("vae-slicing", "vae-tiling")
