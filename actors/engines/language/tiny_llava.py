"""A tiny LLaVA with random weights in the real classes and file formats: a model folder of about 0.4 MB.

Its vocabulary is bytes, so that it encodes any language; its text is random.
"""

from pathlib import Path
from typing import Any

from actors.engines.language.tiny_llama import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, UNK_TOKEN, byte_tokenizer

IMAGE_TOKEN = "<image>"  # noqa: S105 - not a password
SPECIAL_TOKENS = (PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN, IMAGE_TOKEN)
INITIALIZER_RANGE = 0.2
"""Standard deviation of the text model's weights. With a tenth, the usual, a wrong position or mask would change no token."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}</s>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
"""For servers that take messages; the engine here has its own prompt template."""
IMAGE_SIZE, PATCH_SIZE = 30, 10
"""Pixels: nine patches an image, besides the class token, which is left out."""


def write_tiny_llava(folder: Path, *, seed: int = 0, hidden_size: int = 32, num_layers: int = 2) -> None:
    """Save model and processor in `folder`."""
    import torch
    from transformers import LlavaForConditionalGeneration

    tokenizer = llava_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(_config(tokenizer, hidden_size, num_layers)).eval()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, safe_serialization=True)
    _processor(tokenizer).save_pretrained(folder)


def llava_tokenizer() -> Any:
    return byte_tokenizer(IMAGE_TOKEN, padding_side="left")


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
