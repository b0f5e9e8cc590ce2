"""What a checkpoint of a language or vision model lacks or says wrongly, found before the engine is ready.

What is certain is taken from the model's configuration; any other problem is a ValueError with the file, the field and the cure.
"""

import io
import json
from pathlib import Path
from typing import Any

import structlog
from PIL import Image

from actors.engines.language.requests import VlmOptions

log = structlog.get_logger()

PROCESSOR_FILE = "processor_config.json"
ADDITIONAL_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Features of the vision model that are no patch, by its type: CLIP has one for the whole picture."""
PROCESSOR_FIELDS = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
LIMIT_FIELD = "max_position_embeddings"


def complete_processor(processor: Any, config: Any, options: VlmOptions) -> None:
    """Set what processor files of before 2025 lack, and without which no picture can be read. Raises ValueError."""
    vision = config.vision_config
    from_config = (getattr(vision, "patch_size", None), getattr(config, "vision_feature_select_strategy", None))
    certain = dict(zip(PROCESSOR_FIELDS, (*from_config, ADDITIONAL_TOKENS.get(vision.model_type)), strict=True))
    given = processor_fields(options)
    missing = {field: value for field, value in certain.items() if hasattr(processor, field) and given.get(field) is None}
    for field, value in missing.items():
        if value is None:
            raise ValueError(
                f"{options.model}: {PROCESSOR_FILE} has no {field!r}, and config.json does not say it: "
                "add the value of the model from which this one was made"
            )
        setattr(processor, field, value)
    if missing:
        values = ", ".join(f"{field} {value!r}" for field, value in missing.items())
        log.warning("model.processor_completed", model=options.model, reason=f"{PROCESSOR_FILE} lacks what config.json says: {values}")


def processor_fields(options: VlmOptions) -> dict[str, Any]:
    """The fields of the file itself; an object's own default does not show whether they were there."""
    from transformers.utils import cached_file

    file = cached_file(
        options.model, PROCESSOR_FILE, cache_dir=options.cache_dir, _raise_exceptions_for_missing_entries=False,
    )  # fmt: skip
    fields = json.loads(Path(file).read_text()) if file else {}
    return fields if isinstance(fields, dict) else {}


def sample_picture() -> bytes:
    """A PNG that is not square, as most pictures are not."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def check_image_tokens(model: Any, processor: Any, ids: Any, pixel_values: Any, source: str) -> None:
    """Whether the prompt of a picture, `ids`, has one token for each feature of it. Raises ValueError."""
    import torch

    written, read = processor.tokenizer.convert_tokens_to_ids(processor.image_token), model.config.image_token_id
    if written != read:
        raise ValueError(
            f"{source}: the tokenizer gives {processor.image_token!r} the id {written}, but image_token_index in config.json is {read}: "
            "set it to the tokenizer's, or use the tokenizer of this model"
        )
    with torch.inference_mode():
        result = model.get_image_features(pixel_values=pixel_values.to(model.device, model.dtype))
        features = getattr(result, "pooler_output", result)  # older versions of transformers return the features themselves
    count, expected = int((ids == read).sum()), sum(len(part) for part in features)
    if count != expected:
        patch, strategy, more = (getattr(processor, field, None) for field in PROCESSOR_FIELDS)
        raise ValueError(
            f"{source}: a picture has {count} image tokens in the prompt and {expected} features in the model. Correct {PROCESSOR_FILE}: "
            f"patch_size (now {patch}) and vision_feature_select_strategy (now {strategy!r}) must be those of config.json; "
            f"num_additional_image_tokens (now {more}) is 1 for CLIP and 0 for SigLIP"
        )


def context_length(config: Any, source: str) -> int:
    """The most tokens of prompt and answer. Raises ValueError."""
    length = getattr(config, LIMIT_FIELD, None)
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"{source}: config.json has no {LIMIT_FIELD!r}: add the longest context that the model was trained for")
    return length


def stop_token_ids(model: Any, tokenizer: Any, vocabulary_size: int, source: str) -> list[int]:
    """The end tokens of the model's generation config and of its tokenizer. Raises ValueError when there is none."""
    entries = [getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id]
    ids = {token for entry in entries if entry is not None for token in (entry if isinstance(entry, list) else [entry])}
    if not any(0 <= token < vocabulary_size for token in ids):
        raise ValueError(
            f"{source} names no end token among its {vocabulary_size} tokens, so that no answer would end: "
            "set eos_token_id in generation_config.json, or eos_token in tokenizer_config.json"
        )
    return sorted(token for token in ids if 0 <= token < vocabulary_size)
