"""The painter's vocabulary: bytes, so that any text can be said, and each word of the captions as one token."""

import json
from typing import Any

from actors.engines.tiny_diffusion import byte_letters
from ops.tiny.scenes import all_scenes

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
WORDS = 900
"""More than the captions have."""


def build_tokenizer() -> Any:
    """CLIP's own, with merges learned from the captions."""
    from tokenizers import Tokenizer, models, trainers
    from transformers import CLIPTokenizer

    letters = byte_letters()
    alphabet = [*letters, *(f"{letter}</w>" for letter in letters)]
    bare = CLIPTokenizer(vocab=numbered([*alphabet, BEGIN, END]), merges=[], model_max_length=LENGTH).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer, learner.pre_tokenizer = bare.normalizer, bare.pre_tokenizer
    captions = [caption for scene in all_scenes() for caption in scene.captions]
    trainer = trainers.BpeTrainer(vocab_size=WORDS, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False)
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    words = list(dict.fromkeys([*alphabet, *(first + second for first, second in merges)]))
    return CLIPTokenizer(vocab=numbered([*words, BEGIN, END]), merges=merges, model_max_length=LENGTH)


def numbered(words: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}
