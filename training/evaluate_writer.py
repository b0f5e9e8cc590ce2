"""Evaluates tiny-writer on briefs as an order of kind `ad` puts them; the answers are checked by code."""

from pathlib import Path
from random import Random
from typing import Any

from gateway.jobs.orders import ad_copy_command
from training.scenes import random_scene
from training.slogans import slogans
from training.tiny_writer import TEMPERATURE, Messages, format_chat, sample_brief

EVALUATION_SEED = 1_000_033
"""Not used for training."""
MAX_NEW_TOKENS = 64
SAMPLES_PER_BRIEF = 8


def evaluate_writer(model: Path, brief_count: int) -> dict[str, Any]:
    """The share of lines that are valid slogans of their scene, by language; and how many of eight lines for one brief differ."""
    import torch

    torch.manual_seed(EVALUATION_SEED)
    write, rng = load_writer(model), Random(EVALUATION_SEED)
    right: dict[str, float] = {}
    for language, korean in (("english", False), ("korean", True)):
        scenes = [random_scene(rng) for _ in range(brief_count)]
        lines = [write(ad_copy_command(sample_brief(scene, rng, korean=korean))["messages"]) for scene in scenes]
        right[language] = sum(line in slogans(scene, korean=korean) for scene, line in zip(scenes, lines, strict=True)) / brief_count
    messages = ad_copy_command(random_scene(rng).captions[0])["messages"]
    return {"briefs": brief_count, "right": right, "different_of_eight": len({write(messages) for _ in range(SAMPLES_PER_BRIEF)})}


def load_writer(model: Path) -> Any:
    """A function that samples a line for messages."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)

    def write(messages: Messages) -> str:
        inputs = tokenizer(format_chat(tokenizer, messages), return_tensors="pt")
        output = llama.generate(**inputs, do_sample=True, temperature=TEMPERATURE, max_new_tokens=MAX_NEW_TOKENS)
        line: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return line

    return write
