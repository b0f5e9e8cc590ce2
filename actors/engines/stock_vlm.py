"""A LLaVA model asked the stock way, one question at a time: what the benches compare the engine with."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from actors.engines.vlm import VlmOptions

Ask = Callable[[str, bytes], str]


def open_stock_vlm(model: Path, max_new_tokens: int, threads: int | None = None) -> Ask:
    """Load it. The result answers a question about a picture, greedily."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    if threads:
        torch.set_num_threads(threads)
    processor = AutoProcessor.from_pretrained(model)
    llava = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    frame = VlmOptions(str(model)).frame

    def ask(prompt: str, picture: bytes) -> str:
        text = frame.format(image="<image>\n", text=prompt)
        inputs = processor(text=text, images=Image.open(BytesIO(picture)).convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            tokens = llava.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, repetition_penalty=1.1)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        return str(processor.tokenizer.decode(answer, skip_special_tokens=True))

    return ask
