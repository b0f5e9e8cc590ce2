"""The stock pipelines of diffusers and transformers, one request at a time: the baseline that the benchmarks compare the engines with."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.language.requests import VlmOptions

DrawFunction = Callable[[DiffusionRequest, Callable[[int], None]], bytes]
AskFunction = Callable[[str, bytes], str]


def open_stock_pipeline(model: Path, threads: int | None = None) -> DrawFunction:
    """Load a pipeline. The returned function draws the first image of a request as a PNG and reports each step."""
    import torch
    from diffusers import StableDiffusionPipeline, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    def draw(request: DiffusionRequest, report: Callable[[int], None]) -> bytes:
        def on_step_end(_pipeline: Any, step: int, _timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
            report(step + 1)
            return arguments

        given = {
            "num_inference_steps": request.steps, "guidance_scale": request.guidance_scale,
            "width": request.width, "height": request.height,
        }  # fmt: skip
        options = {name: value for name, value in given.items() if value is not None}
        generator = torch.Generator().manual_seed(request.seed)
        image = pipeline(request.prompt, generator=generator, callback_on_step_end=on_step_end, **options).images[0]
        file = BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()

    return draw


def open_stock_vlm(model: Path, max_new_tokens: int, threads: int | None = None) -> AskFunction:
    """Load a model. The returned function answers a prompt about an image (PNG or JPEG), greedily."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    if threads:
        torch.set_num_threads(threads)
    processor = AutoProcessor.from_pretrained(model)
    llava = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    template = VlmOptions(str(model)).prompt_template

    def ask(prompt: str, image: bytes) -> str:
        text = template.format(image="<image>\n", text=prompt)
        inputs = processor(text=text, images=Image.open(BytesIO(image)).convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            tokens = llava.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, repetition_penalty=1.1)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        return str(processor.tokenizer.decode(answer, skip_special_tokens=True))

    return ask
