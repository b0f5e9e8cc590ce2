"""transformers' own `generate` on static batches, as an application without an engine calls it: what the engines are compared with.

All requests of a batch are read together, and the batch ends with its longest answer. It runs in a process of its own, with the priority
of a model process, so that other work on the machine costs both sides the same.
"""

import asyncio
import io
import multiprocessing
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from PIL import Image

from actors.engines.language.requests import GenerationRequest, VlmOptions, VlmRequest
from actors.engines.process.child import NICENESS

Requests = Sequence[GenerationRequest] | Sequence[VlmRequest]
Generate = Callable[[Any], int]
"""Generates the answers of one batch of requests; the number of tokens in all."""
LOADED: dict[str, Generate] = {}
"""In the process: the loaded model."""


@asynccontextmanager
async def open_stock_model(kind: str, model: str, *, dtype: str, threads: int) -> AsyncIterator[Callable[[Requests], Awaitable[int]]]:
    """`kind`: a key of LOADERS. Yields what generates the answers of one batch, once the model is loaded."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        await loop.run_in_executor(pool, load, kind, model, dtype, threads)

        async def generate(requests: Requests) -> int:
            return await loop.run_in_executor(pool, generate_batch, requests)

        yield generate


def load(kind: str, model: str, dtype: str, threads: int) -> None:
    import torch

    os.nice(NICENESS)
    torch.set_num_threads(threads)
    LOADED["model"] = LOADERS[kind](model, getattr(torch, dtype))


def generate_batch(requests: Requests) -> int:
    return LOADED["model"](requests)


def load_text(model: str, dtype: Any) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def generate(requests: Sequence[GenerationRequest]) -> int:
        first = requests[0]
        torch.manual_seed(first.seed or 0)
        inputs = tokenizer.apply_chat_template(
            [request.messages for request in requests], add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        sampling = {"do_sample": first.temperature > 0, "temperature": first.temperature or 1.0, "top_p": first.top_p, "top_k": 0}
        return count_generated(weights, inputs, first.max_tokens, pad=tokenizer.pad_token_id, **sampling)

    return generate


def load_vision(model: str, dtype: Any) -> Generate:
    """Of every family that the engine serves: with its prompts, and its processor's padding."""
    from transformers import AutoModelForImageTextToText

    from actors.engines.language.families.registry import find_family

    options = VlmOptions(model)
    family = find_family(options)(options)
    weights = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype).eval()

    def generate(requests: Sequence[VlmRequest]) -> int:
        prompts = [family.prompt(request.text, len(request.images)) for request in requests]
        pictures = [[Image.open(io.BytesIO(image)).convert("RGB") for image in request.images] for request in requests]
        bos = family.tokenizer.bos_token
        inputs = family.processor(
            images=pictures, text=prompts, padding=True, return_tensors="pt", add_special_tokens=not (bos and prompts[0].startswith(bos))
        )
        pad = family.tokenizer.pad_token_id
        return count_generated(weights, inputs, requests[0].max_new_tokens, pad=pad, do_sample=False)

    return generate


def count_generated(model: Any, inputs: Any, tokens: int, *, pad: int, **sampling: Any) -> int:
    """Tokens up to the end of each answer, of all rows together; `pad` fills the rows that ended before the longest."""
    import torch

    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=tokens, pad_token_id=pad, **sampling)
    return int((made[:, inputs["input_ids"].shape[1] :] != pad).sum())


LOADERS: dict[str, Callable[[str, Any], Generate]] = {"text": load_text, "vision": load_vision}
