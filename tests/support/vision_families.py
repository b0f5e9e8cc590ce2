"""Tiny vision models of every family: the engine that serves one, and transformers' own `generate` to compare it with."""

import io
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from actors.engines.language.requests import VlmOptions, VlmRequest
from actors.engines.language.tiny_vision import TINY_VISION
from actors.engines.language.vision_model import VlmEngine, open_engine
from actors.engines.process.protocol import EngineEvent, Finished
from tests.support.engine_fixture import silent_host

FAMILY_NAMES = ("tiny-llava", *TINY_VISION)
SIZES = (40, 56, 90, 140, 224)


def open_family(folder: Path, **changes: Any) -> VlmEngine:
    engine = open_engine(replace(VlmOptions(str(folder), window_seconds=0, threads=1), **changes), silent_host(folder))
    engine.self_test()
    return engine


def picture(seed: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of coloured patches; its size is random too."""
    dice = random.Random(seed)
    small = Image.frombytes("RGB", (5, 5), dice.randbytes(75))
    file = io.BytesIO()
    small.resize(size or (dice.choice(SIZES), dice.choice(SIZES)), Image.Resampling.BILINEAR).save(file, "PNG")
    return file.getvalue()


def generate_alone(engine: VlmEngine, request: VlmRequest) -> list[int]:
    """The tokens of transformers' `generate`, whose prompt is made by transformers too; for LLaVA-1.5 by the template in the settings."""
    processor, model = engine._family.processor, engine._model
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in request.images]
    if engine._family.model_type == "llava":
        prompt = "USER: " + "<image>\n" * len(pictures) + f"{request.text}\nASSISTANT:"
        inputs = processor(images=pictures or None, text=[prompt], return_tensors="pt")
    else:
        content = [*({"type": "image", "image": one} for one in pictures), {"type": "text", "text": request.text}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )  # fmt: skip
    ends = engine._stop_token_ids
    with torch.inference_mode():
        whole = model.generate(
            **inputs, max_new_tokens=request.max_new_tokens, do_sample=False, eos_token_id=ends,
            repetition_penalty=request.repetition_penalty,
        )  # fmt: skip
    tokens: list[int] = whole[0, inputs["input_ids"].shape[1] :].tolist()
    return next((tokens[: place + 1] for place, token in enumerate(tokens) if token in ends), tokens)


def generate(engine: VlmEngine, requests: Sequence[VlmRequest], joins: Sequence[int] | None = None) -> list[list[int]]:
    """The tokens of each request, which joins at the tick of the same place in `joins`. A step that fails is an error: the engine would
    start its rows again, each alone.
    """
    joins, tokens, tick = joins or [0] * len(requests), {}, 0
    build = engine._build_response
    engine._build_response = lambda row: list(row.output_ids)  # type: ignore[method-assign, assignment, return-value]
    engine._isolate = raise_error  # type: ignore[method-assign, assignment]
    try:
        while tick <= max(joins) or engine.idle_seconds() is not None:
            for number in [number for number, start in enumerate(joins) if start == tick]:
                engine.submit(number, requests[number])
            tokens.update({event.request_id: event.result for event in engine.tick() if isinstance(event, Finished)})
            tick += 1
    finally:
        engine._build_response = build  # type: ignore[method-assign]
        del engine._isolate
    return [tokens[number] for number in range(len(requests))]


def raise_error(_: object, error: Exception) -> list[EngineEvent]:
    raise error
