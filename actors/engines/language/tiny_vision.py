"""Tiny checkpoints of every family of vision models with random weights, in the real classes and file formats: 0.5 to 1 MB each.

Their vocabularies are bytes, so that they encode any language. They are saved as published checkpoints are: with the names of image and
video processors that need torchvision, which the engine does without.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.engines.language.tiny_llava import INITIALIZER_RANGE, write_tiny_llava

WIDTH = 64
"""Of text and vision models: the least that quantized layers take, which are divided into blocks of 64."""
TEXT = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
VISION = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
HEAD_WIDTH = WIDTH // 4
CONTEXT = 16_384
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ 'PICTURE' }}{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ 'BOS' }}{% for message in messages %}BEFORE{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ 'PICTURE' }}{% else %}{{ part.text }}{% endif %}{% endfor %}AFTER{% endfor %}"
)
Parts = tuple[Any, Any]
"""Model and processor."""


def write_tiny_vision(name: str, folder: Path, *, seed: int = 0) -> None:
    """Save the checkpoint of that name from `TINY_VISION` in `folder`."""
    import torch

    if name == "tiny-llava":
        write_tiny_llava(folder, seed=seed)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = TINY_VISION[name]()
        if name == "tiny-gemma3":  # its class fills them with zeros, with which no picture would matter
            torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    tokenizer = processor.tokenizer
    model.generation_config.update(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, do_sample=False)
    model.eval().save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    _spell_as_published(folder, VIDEO_PROCESSORS.get(name))


def _spell_as_published(folder: Path, video_processor: str | None) -> None:
    file = folder / "processor_config.json"
    content = json.loads(file.read_text())
    images = content["image_processor"]
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Pil") + "Fast"
    if video_processor:
        content["video_processor"] = {"video_processor_type": video_processor}
    file.write_text(json.dumps(content, indent=2))


def byte_tokenizer(special: tuple[str, ...], *, eos: str, bos: str | None = None, names: dict[str, str] | None = None) -> Any:
    """A tokenizer of `special` tokens, the first of which pads, and single bytes. `bos` is put before each text; `names`: attributes that
    hold some of them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, special.index(bos))])
    ends = {"pad_token": special[0], "eos_token": eos, "bos_token": bos}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", extra_special_tokens=names or {}, **ends)


def _text(config: str, tokenizer: Any, **more: Any) -> Any:
    """The configuration of a text model of that class."""
    import transformers

    sizes = TEXT | {"max_position_embeddings": CONTEXT, "initializer_range": INITIALIZER_RANGE, "vocab_size": len(tokenizer) + 3}
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return getattr(transformers, config)(**{**sizes, **ids, **more})


def _turns(before: str, picture: str, after: str, bos: str = "") -> str:
    return TURNS.replace("BOS", bos).replace("BEFORE", before).replace("PICTURE", picture).replace("AFTER", after)


def _id(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _without_videos(name: str) -> Any:
    import transformers

    from actors.engines.language.families.processors import without_videos

    return without_videos(getattr(transformers, name))


def _llava_next() -> Parts:
    import transformers as t

    tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>", "<image>"), bos="<s>", eos="</s>")
    grids = [[42, 84], [84, 42], [84, 84], [126, 42], [42, 126]]
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**VISION, image_size=42, patch_size=14, projection_dim=WIDTH),
        text_config=_text("MistralConfig", tokenizer, sliding_window=None),
        image_token_index=_id(tokenizer, "<image>"), image_grid_pinpoints=grids,
    )  # fmt: skip
    images = t.LlavaNextImageProcessorPil(
        size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}, image_grid_pinpoints=grids
    )  # fmt: skip
    return t.LlavaNextForConditionalGeneration(config), t.LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_turns("[INST] ", "<image>\n", " [/INST]", bos="<s>"),
    )  # fmt: skip


def _llava_onevision() -> Parts:
    import transformers as t

    tokenizer = byte_tokenizer((*CHATML_TOKENS, "<image>", "<video>"), eos="<|im_end|>")
    grids = [[rows * 42, columns * 42] for rows in (1, 2, 3) for columns in (1, 2, 3)]
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**VISION, image_size=42, patch_size=14, vision_use_head=False),
        text_config=_text("Qwen2Config", tokenizer), image_token_index=_id(tokenizer, "<image>"),
        video_token_index=_id(tokenizer, "<video>"), image_grid_pinpoints=grids,
    )  # fmt: skip
    images = t.LlavaOnevisionImageProcessorPil(size={"height": 42, "width": 42}, image_grid_pinpoints=grids)
    return t.LlavaOnevisionForConditionalGeneration(config), _without_videos("LlavaOnevisionProcessor")(
        images, tokenizer, num_image_tokens=9, vision_feature_select_strategy="full",
        chat_template=CHATML.replace("PICTURE", "<image>\n"),
    )  # fmt: skip


def _qwen(kind: str, patch: int, vision: dict[str, Any], text: dict[str, Any], rope: dict[str, Any]) -> Parts:
    import transformers as t

    tokens = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = byte_tokenizer((*CHATML_TOKENS, *tokens), eos="<|im_end|>")
    fields = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    sizes = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_heads": 4, "out_hidden_size": WIDTH}
    sections = [HEAD_WIDTH // 8, 3 * HEAD_WIDTH // 16, 3 * HEAD_WIDTH // 16]
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections} | rope
    config = getattr(t, f"{kind}Config")(
        vision_config=sizes | {"patch_size": patch} | vision,
        text_config=_text(f"{kind}TextConfig", tokenizer, rope_parameters=rope, **text).to_dict(),
        **{field: _id(tokenizer, token) for field, token in zip(fields, tokens, strict=True)},
    )
    images = t.Qwen2VLImageProcessorPil(patch_size=patch, size={"shortest_edge": 4 * patch**2, "longest_edge": 400 * patch**2})
    template = CHATML.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = _without_videos(f"{kind}Processor")(images, tokenizer, chat_template=template)
    return getattr(t, f"{kind}ForConditionalGeneration")(config), processor


def _qwen2_5_vl() -> Parts:
    return _qwen("Qwen2_5_VL", 14, {"fullatt_block_indexes": [1], "window_size": 56}, {}, {})


def _qwen3_vl() -> Parts:
    vision = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return _qwen("Qwen3VL", 16, vision, {"head_dim": HEAD_WIDTH}, {"mrope_interleaved": True})


def _internvl() -> Parts:
    import transformers as t

    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer = byte_tokenizer((*CHATML_TOKENS, *names.values()), eos="<|im_end|>", names=names)
    config = t.InternVLConfig(
        vision_config=t.InternVLVisionConfig(**VISION, image_size=56, patch_size=14), text_config=_text("Qwen2Config", tokenizer),
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"), image_seq_length=4, tie_word_embeddings=False,
    )  # fmt: skip
    images = t.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4)
    return t.InternVLForConditionalGeneration(config), _without_videos("InternVLProcessor")(
        images, tokenizer, image_seq_length=4, chat_template=CHATML.replace("PICTURE", "<IMG_CONTEXT>\n")
    )


def _gemma3() -> Parts:
    import transformers as t

    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokens = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", *names.values())
    tokenizer = byte_tokenizer(tokens, bos="<bos>", eos="<eos>", names=names)
    text = _text(
        "Gemma3TextConfig", tokenizer, num_hidden_layers=4, head_dim=HEAD_WIDTH, query_pre_attn_scalar=HEAD_WIDTH, sliding_window=32,
        sliding_window_pattern=2, tie_word_embeddings=False,
    )  # fmt: skip
    config = t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**VISION, image_size=56, patch_size=14, vision_use_head=False), text_config=text,
        mm_tokens_per_image=4, tie_word_embeddings=False,
        **{f"{name}_index": _id(tokenizer, token) for name, token in names.items()},
    )  # fmt: skip
    template = _turns("<start_of_turn>user\n", "<start_of_image>", "<end_of_turn>\n<start_of_turn>model\n", bos="<bos>")
    images = t.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    return t.Gemma3ForConditionalGeneration(config), t.Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template)


def _idefics(kind: str = "Idefics3") -> Parts:
    import transformers as t

    cells = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    tokens = ("<pad>", "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>", *cells)
    tokenizer = byte_tokenizer(tokens, bos="<|im_start|>", eos="<end_of_utterance>")
    config = getattr(t, f"{kind}Config")(
        vision_config=getattr(t, f"{kind}VisionConfig")(**VISION, image_size=64, patch_size=16),
        text_config=_text("LlamaConfig", tokenizer),
        image_token_id=_id(tokenizer, "<image>"), scale_factor=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    images = getattr(t, f"{kind}ImageProcessorPil")(size={"longest_edge": 192}, max_image_size={"longest_edge": 64})
    template = _turns("User:", "<image>", "<end_of_utterance>\nAssistant:", bos="<|im_start|>")
    processor = t.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    return getattr(t, f"{kind}ForConditionalGeneration")(config), processor


def _smolvlm() -> Parts:
    return _idefics("SmolVLM")


VIDEO_PROCESSORS = {
    "tiny-llava-onevision": "LlavaOnevisionVideoProcessor", "tiny-qwen2.5-vl": "Qwen2VLVideoProcessor",
    "tiny-qwen3-vl": "Qwen3VLVideoProcessor", "tiny-internvl": "InternVLVideoProcessor", "tiny-smolvlm": "SmolVLMVideoProcessor",
}  # fmt: skip
TINY_VISION: dict[str, Callable[[], Parts]] = {
    "tiny-llava-next": _llava_next, "tiny-llava-onevision": _llava_onevision, "tiny-qwen2.5-vl": _qwen2_5_vl,
    "tiny-qwen3-vl": _qwen3_vl, "tiny-internvl": _internvl, "tiny-gemma3": _gemma3, "tiny-idefics3": _idefics, "tiny-smolvlm": _smolvlm,
}  # fmt: skip
