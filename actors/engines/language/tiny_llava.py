"""A tiny LLaVA with random weights, in the real classes and the real file formats. Writes a model folder of about 0.4 MB.

Its vocabulary is bytes, so it reads and writes any language; what it says means nothing.
"""

from pathlib import Path
from typing import Any

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN, IMAGE_TOKEN = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
INITIALIZER_RANGE = 0.2
"""Spread of the text model's weights. Ten times the usual, or attention is so even that a wrong position or mask changes no word."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}</s>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
"""For servers that take messages; our own engine frames its prompts itself."""
IMAGE_SIZE, PATCH_SIZE = 30, 10
"""Pixels: nine patches a picture, plus the class token that is left out."""


def write_tiny_llava(folder: Path, *, seed: int = 0, hidden_size: int = 32, num_layers: int = 2) -> None:
    """Save model and processor under `folder`."""
    import torch
    from transformers import LlavaForConditionalGeneration

    tokenizer = byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(_config(tokenizer, hidden_size, num_layers)).eval()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, safe_serialization=True)
    _processor(tokenizer).save_pretrained(folder)


def byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[], unk_token=UNK_TOKEN))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token=BOS_TOKEN, eos_token=EOS_TOKEN, pad_token=PAD_TOKEN, unk_token=UNK_TOKEN,
        additional_special_tokens=[IMAGE_TOKEN], padding_side="left",
    )  # fmt: skip


def _config(tokenizer: Any, hidden: int, layers: int) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": 4}
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=hidden),
        text_config=LlamaConfig(
            **sizes, vocab_size=len(tokenizer) + 3, num_key_value_heads=4, max_position_embeddings=8192,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
            initializer_range=INITIALIZER_RANGE,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_select_strategy="default", vision_feature_layer=-1,
    )  # fmt: skip


def _processor(tokenizer: Any) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH_SIZE, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token=IMAGE_TOKEN, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
