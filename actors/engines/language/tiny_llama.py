"""A tiny Llama with random weights in the real classes and file formats, with a chat template: a model folder of about 0.3 MB.

Its vocabulary is bytes, so that it encodes any language; its text is random.
"""

from pathlib import Path
from typing import Any

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN, TURN_TOKEN = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<|turn|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def write_tiny_llama(folder: Path, *, seed: int = 0, hidden_size: int = 64, num_layers: int = 2) -> None:
    """Save model and tokenizer in `folder`. Heads are 32 wide: vLLM's attention on a CPU needs at least that."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer(TURN_TOKEN, chat_template=CHAT_TEMPLATE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=num_layers, num_attention_heads=hidden_size // 32,
            num_key_value_heads=hidden_size // 32, vocab_size=len(tokenizer), max_position_embeddings=2048,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def byte_tokenizer(additional_token: str, **options: Any) -> Any:
    """A tokenizer of the usual special tokens, `additional_token` and single bytes. `options` are those of PreTrainedTokenizerFast."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN, additional_token, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[], unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS_TOKEN, eos_token=EOS_TOKEN, pad_token=PAD_TOKEN, unk_token=UNK_TOKEN,
        additional_special_tokens=[additional_token], **options,
    )  # fmt: skip
