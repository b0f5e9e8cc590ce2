"""The writer's examination: briefs that it answers as an order of kind `ad` asks them, read by code."""

from pathlib import Path
from random import Random
from typing import Any

from gateway.orders import copy_order
from ops.tiny.scenes import any_scene
from ops.tiny.slogans import slogans
from ops.tiny.writer import TEMPERATURE, Messages, brief, framed

SEED = 1_000_033
"""No lesson was drawn from it."""
LONGEST = 64
TRIES = 8


def proofread(model: Path, briefs: int) -> dict[str, Any]:
    """The share of lines that may be said of their scene, by the language of the brief; and how many of eight for one brief differ."""
    import torch

    torch.manual_seed(SEED)
    write, dice = opened(model), Random(SEED)
    right: dict[str, float] = {}
    for language, korean in (("english", False), ("korean", True)):
        scenes = [any_scene(dice) for _ in range(briefs)]
        lines = [write(copy_order(brief(scene, dice, korean=korean))["messages"]) for scene in scenes]
        right[language] = sum(line in slogans(scene, korean=korean) for scene, line in zip(scenes, lines, strict=True)) / briefs
    asked = copy_order(any_scene(dice).captions[0])["messages"]
    return {"briefs": briefs, "right": right, "different_of_eight": len({write(asked) for _ in range(TRIES)})}


def opened(model: Path) -> Any:
    """A function from messages to a line, as chance will have it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)

    def write(messages: Messages) -> str:
        asked = tokenizer(framed(tokenizer, messages), return_tensors="pt")
        said = llama.generate(**asked, do_sample=True, temperature=TEMPERATURE, max_new_tokens=LONGEST)
        line: str = tokenizer.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        return line

    return write
