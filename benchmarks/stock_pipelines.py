"""The stock pipeline, one order at a time: what the benches compare the engine with."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.language.requests import VlmOptions

DrawFunction = Callable[[DiffusionRequest, Callable[[int], None]], bytes]


def open_stock_pipeline(model: Path, threads: int | None = None) -> DrawFunction:
    """Load it. The result draws one order's first picture as a PNG and tells each step that is done."""
    import torch
    from diffusers import StableDiffusionPipeline, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    def draw(work: DiffusionRequest, report: Callable[[int], None]) -> bytes:
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


AskFunction = Callable[[str, bytes], str]


def open_stock_vlm(model: Path, max_new_tokens: int, threads: int | None = None) -> AskFunction:
    """Load it. The result answers a question about a picture, greedily."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    if threads:
        torch.set_num_threads(threads)
    processor = AutoProcessor.from_pretrained(model)
    llava = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    frame = VlmOptions(str(model)).prompt_template

    def ask(prompt: str, picture: bytes) -> str:
        text = frame.format(image="<image>\n", text=prompt)
        inputs = processor(text=text, images=Image.open(BytesIO(picture)).convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            tokens = llava.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, repetition_penalty=1.1)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        return str(processor.tokenizer.decode(answer, skip_special_tokens=True))

    return ask
