"""The painter's vocabulary: bytes, so that any text can be said, and each word of the captions as one token."""

import json
from typing import Any

from actors.engines.diffusion.tiny_stable_diffusion import byte_alphabet
from training.scenes import all_scenes

BOS_TOKEN, EOS_TOKEN = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
VOCABULARY_SIZE = 900
"""More than the captions have."""


def build_clip_tokenizer() -> Any:
    """CLIP's own, with merges learned from the captions."""
    from tokenizers import Tokenizer, models, trainers
    from transformers import CLIPTokenizer

    letters = byte_alphabet()
    alphabet = [*letters, *(f"{letter}</w>" for letter in letters)]
    bare = CLIPTokenizer(vocab=token_ids([*alphabet, BOS_TOKEN, EOS_TOKEN]), merges=[], model_max_length=MAX_LENGTH).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer, learner.pre_tokenizer = bare.normalizer, bare.pre_tokenizer
    captions = [caption for scene in all_scenes() for caption in scene.captions]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY_SIZE, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False)
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    words = list(dict.fromkeys([*alphabet, *(first + second for first, second in merges)]))
    return CLIPTokenizer(vocab=token_ids([*words, BOS_TOKEN, EOS_TOKEN]), merges=merges, model_max_length=MAX_LENGTH)


def token_ids(tokens: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(tokens)}
