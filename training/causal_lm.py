"""What the critic and the writer share: a tokenizer that knows the lessons' words, and the loss of which only the answers count."""

from collections.abc import Iterable, Sequence
from typing import Any


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, special_tokens: Sequence[str], **options: Any) -> Any:
    """Bytes, so that any text can be read, and what the lessons say often as one token. `special`: pad, begin, end, unknown, another."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pad, begin, end, unknown, another = special_tokens
    learner = Tokenizer(models.BPE(unk_token=unknown))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, initial_alphabet=alphabet, special_tokens=list(special_tokens), show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=learner, bos_token=begin, eos_token=end, pad_token=pad, unk_token=unknown,
        additional_special_tokens=[another], **options,
    )  # fmt: skip


def answer_loss(model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> Any:
    """How unlikely the model finds the answers to the prompts, token by token."""
    ids, wanted = tokenize_pairs(tokenizer, prompts, answers)
    return cross_entropy(model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits, wanted)


def tokenize_pairs(tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> tuple[Any, Any]:
    """Two arrays of batch × length: the tokens, padded at the right, and those that count: the answers'."""
    import torch

    asked = [tokenizer(prompt).input_ids for prompt in prompts]
    said = [[*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for answer in answers]
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(asked, said, strict=True))
    ids = torch.full((len(asked), longest), tokenizer.pad_token_id)
    wanted = torch.full((len(asked), longest), -100)
    for row, (prompt, answer) in enumerate(zip(asked, said, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        wanted[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, wanted


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The mean cross entropy, in nats, of logits of batch × length × vocabulary."""
    import torch

    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
