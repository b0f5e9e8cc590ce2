"""What the critic and the writer share: a tokenizer that knows the lessons' words, and the loss of which only the answers count."""

from collections.abc import Iterable, Sequence
from typing import Any


def learned_tokenizer(said: Iterable[str], words: int, special: Sequence[str], **more: Any) -> Any:
    """Bytes, so that any text can be read, and what the lessons say often as one token. `special`: pad, begin, end, unknown, another."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pad, begin, end, unknown, another = special
    learner = Tokenizer(models.BPE(unk_token=unknown))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=words, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False)
    learner.train_from_iterator(said, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=learner, bos_token=begin, eos_token=end, pad_token=pad, unk_token=unknown,
        additional_special_tokens=[another], **more,
    )  # fmt: skip


def answering(model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], **seen: Any) -> Any:
    """How unlikely the model finds the answers to the prompts, token by token. `seen`: what else the model is given."""
    import torch

    asked = [tokenizer(prompt).input_ids for prompt in prompts]
    said = [[*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for answer in answers]
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(asked, said, strict=True))
    ids = torch.full((len(asked), longest), tokenizer.pad_token_id)
    wanted = torch.full((len(asked), longest), -100)
    for row, (prompt, answer) in enumerate(zip(asked, said, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        wanted[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    told = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), **seen).logits
    return torch.nn.functional.cross_entropy(told[:, :-1].flatten(0, 1), wanted[:, 1:].flatten())
