"""What tiny-critic and tiny-writer share: a byte-level tokenizer trained on the examples, and a loss over the answers only."""

from collections.abc import Iterable, Sequence
from typing import Any


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, special_tokens: Sequence[str], **options: Any) -> Any:
    """A byte-level BPE, which encodes any text. `special_tokens`: pad, begin, end, unknown, and one more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pad, begin, end, unknown, additional = special_tokens
    backend = Tokenizer(models.BPE(unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, initial_alphabet=alphabet, special_tokens=list(special_tokens), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=begin, eos_token=end, pad_token=pad, unk_token=unknown,
        additional_special_tokens=[additional], **options,
    )  # fmt: skip


def answer_loss(model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> Any:
    """The cross entropy of the answers to the prompts, token by token."""
    ids, labels = tokenize_pairs(tokenizer, prompts, answers)
    return cross_entropy(model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits, labels)


def tokenize_pairs(tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> tuple[Any, Any]:
    """Two tensors of batch × length: the token ids, padded at the right, and the labels: -100 everywhere but in the answers."""
    import torch

    prompt_ids = [tokenizer(prompt).input_ids for prompt in prompts]
    answer_ids = [[*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for answer in answers]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompt_ids, answer_ids, strict=True))
    ids = torch.full((len(prompt_ids), length), tokenizer.pad_token_id)
    labels = torch.full((len(prompt_ids), length), -100)
    for row, (prompt, answer) in enumerate(zip(prompt_ids, answer_ids, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The mean cross entropy, in nats, of logits (batch × length × vocabulary) against the next labels."""
    import torch

    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
