"""A tiny Llama with random weights, in the real classes and file formats, with a chat template. Writes a model folder of about 0.3 MB.

Its vocabulary is bytes, so it reads and writes any language; what it says means nothing.
"""

from pathlib import Path

PAD, BEGIN, END, UNKNOWN, TURN = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<|turn|>")
TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def write_llama(folder: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2) -> None:
    """Save model and tokenizer under `folder`. Heads are 32 wide: vLLM's attention on a CPU takes no less."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[], unk_token=UNKNOWN))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token=BEGIN, eos_token=END, pad_token=PAD, unk_token=UNKNOWN,
        additional_special_tokens=[TURN], chat_template=TEMPLATE,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32, vocab_size=len(tokenizer), max_position_embeddings=2048,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def write_llama_lora(folder: Path, *, seed: int = 1, hidden: int = 64, layers: int = 2, rank: int = 4) -> None:
    """An adapter for such a model, in the form of PEFT, strong enough to change what is written."""
    import json

    import torch
    from safetensors.torch import save_file

    dice = torch.Generator().manual_seed(seed)
    names = [f"base_model.model.model.layers.{layer}.self_attn.{part}_proj" for layer in range(layers) for part in "qv"]
    shapes = {"lora_A": (rank, hidden), "lora_B": (hidden, rank)}
    weights = {f"{name}.{side}.weight": torch.randn(shape, generator=dice) for name in names for side, shape in shapes.items()}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4 * rank, "target_modules": ["q_proj", "v_proj"]}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.0, "bias": "none", "inference_mode": True}))
