"""The tokenizer of tiny-shapes: a byte-level BPE, which encodes any text, with each word of the captions as one token."""

import json
from typing import Any

from actors.engines.diffusion.tiny_stable_diffusion import byte_alphabet
from training.scenes import all_scenes

BOS_TOKEN, EOS_TOKEN = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
VOCABULARY_SIZE = 900
"""More tokens than the captions need."""


def build_clip_tokenizer() -> Any:
    """CLIP's own class, with merges learned from the captions."""
    from tokenizers import Tokenizer, models, trainers
    from transformers import CLIPTokenizer

    symbols = byte_alphabet()
    alphabet = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    bare = CLIPTokenizer(vocab=token_ids([*alphabet, BOS_TOKEN, EOS_TOKEN]), merges=[], model_max_length=MAX_LENGTH).backend_tokenizer
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    backend.normalizer, backend.pre_tokenizer = bare.normalizer, bare.pre_tokenizer
    captions = [caption for scene in all_scenes() for caption in scene.captions]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY_SIZE, end_of_word_suffix="</w>", initial_alphabet=symbols, show_progress=False)
    backend.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    tokens = list(dict.fromkeys([*alphabet, *(first + second for first, second in merges)]))
    return CLIPTokenizer(vocab=token_ids([*tokens, BOS_TOKEN, EOS_TOKEN]), merges=merges, model_max_length=MAX_LENGTH)


def token_ids(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}
