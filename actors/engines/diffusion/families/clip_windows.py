"""Prompts as windows of tokens that a CLIP text encoder can read: a prompt that is longer than one has several.

A window has 77 tokens, two of which mark begin and end. A prompt that fits into one window is tokenized as in the stock pipelines.
"""

from collections.abc import Sequence
from typing import Any

import torch

from bus.errors import PermanentError

SHORTEST_WINDOW = 3
"""Begin, one token and end."""
MAX_WINDOWS = 8
"""A call takes time and memory by the length of its texts, and a client writes them."""


def limit_tokens(pipeline: Any, tokenizer_part: str, encoder_part: str) -> None:
    """Set a tokenizer's limit to that of its text encoder where its file names a larger one or none. Raises ValueError for no number."""
    tokenizer, longest = getattr(pipeline, tokenizer_part), getattr(pipeline, encoder_part).config.max_position_embeddings
    limits = {f"{tokenizer_part}/tokenizer_config.json": tokenizer.model_max_length, f"{encoder_part}/config.json": longest}
    for (file, limit), field in zip(limits.items(), ("model_max_length", "max_position_embeddings"), strict=True):
        if not (isinstance(limit, int | float) and limit >= SHORTEST_WINDOW):
            raise ValueError(f"{field} in {file} is {limit!r}, not a number of tokens; take the file of the checkpoint's origin")
    tokenizer.model_max_length = int(min(limits.values()))


def split_prompt(pipeline: Any, tokenizer: Any, prompt: str) -> list[list[int]]:
    """The token ids of each window, without begin, end and padding; of an empty prompt one window of none.

    Raises PermanentError("prompt-too-long") with the number of tokens.
    """
    ids = tokenizer(pipeline.maybe_convert_prompt(prompt, tokenizer), add_special_tokens=False, verbose=False).input_ids
    size = int(tokenizer.model_max_length) - 2
    if len(ids) > MAX_WINDOWS * size:
        raise PermanentError(
            "prompt-too-long",
            f"a prompt has {len(ids)} tokens; the model reads at most {MAX_WINDOWS * size} ({MAX_WINDOWS} windows of {size}): shorten it",
        )
    return [ids[start : start + size] for start in range(0, len(ids), size)] or [[]]


def count_windows(pipeline: Any, tokenizers: Sequence[Any], prompts: Sequence[str]) -> int:
    """The windows of the longest prompt: the halves of a guided row have the same length. Raises PermanentError("prompt-too-long")."""
    return max(len(split_prompt(pipeline, tokenizer, prompt)) for tokenizer in tokenizers for prompt in prompts)


def prompt_windows(pipeline: Any, tokenizer: Any, prompt: str, count: int) -> list[dict[str, torch.Tensor]]:
    """The arguments of the text encoder for each of `count` windows, 1 × 77 each; those behind the prompt's end are of an empty prompt."""
    windows = split_prompt(pipeline, tokenizer, prompt)
    return [window_tensors(tokenizer, ids) for ids in [*windows, *[[]] * (count - len(windows))]]


def window_tensors(tokenizer: Any, ids: Sequence[int]) -> dict[str, torch.Tensor]:
    """Begin, tokens, end and padding, and which of them are no padding."""
    marked = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    padding = int(tokenizer.model_max_length) - len(marked)
    return {
        "input_ids": torch.tensor([[*marked, *[tokenizer.pad_token_id] * padding]]),
        "attention_mask": torch.tensor([[1] * len(marked) + [0] * padding]),
    }
