"""The stock pipeline, one order at a time: what the benches compare the engine with."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from actors.engines.image_work import ImageWork

Draw = Callable[[ImageWork, Callable[[int], None]], bytes]


def open_stock_pipeline(model: Path, threads: int | None = None) -> Draw:
    """Load it. The result draws one order's first picture as a PNG and tells each step that is done."""
    import torch
    from diffusers import StableDiffusionPipeline, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    def draw(work: ImageWork, report: Callable[[int], None]) -> bytes:
        def tell(_pipeline: Any, step: int, _timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
            report(step + 1)
            return arguments

        picture = pipeline(
            work.prompt, num_inference_steps=work.steps, guidance_scale=work.guidance_scale, width=work.width, height=work.height,
            generator=torch.Generator().manual_seed(work.seed), callback_on_step_end=tell,
        ).images[0]  # fmt: skip
        file = BytesIO()
        picture.save(file, format="PNG")
        return file.getvalue()

    return draw
