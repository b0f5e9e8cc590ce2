"""What a checkpoint of a language or vision model lacks or says wrongly, found before the engine is ready.

What is certain is taken from the model's configuration; any other problem is a ValueError with the file, the field and the cure.
"""

import io
import json
from pathlib import Path
from typing import Any

import structlog
from PIL import Image

from actors.engines.language.batch import inputs_on_device
from actors.engines.language.families.family import PROCESSOR_FILE, ReadPrompt, VisionFamily
from actors.engines.language.requests import VlmOptions
from actors.engines.process.failures import describe_error

log = structlog.get_logger()

ADDITIONAL_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Features of the vision model that are no patch, by its type: CLIP has one for the whole picture."""
PROCESSOR_FIELDS = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
MAX_CAUSE_CHARS = 300
"""Of another library's error, in ours."""
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


def read_sample(family: VisionFamily) -> ReadPrompt:
    """A prompt with the test picture. Raises ValueError."""
    try:
        with Image.open(io.BytesIO(sample_picture())) as picture:
            return family.read(family.prompt("?", 1), [picture.convert("RGB")])
    except Exception as error:
        cause, files = describe_error(error, MAX_CAUSE_CHARS), f"check config.json and {PROCESSOR_FILE} of {family.source}"
        raise ValueError(f"the test picture could not be read: {cause}; {files}") from error


def check_image_tokens(model: Any, family: VisionFamily, prompt: ReadPrompt) -> None:
    """Whether the prompt of a picture has one token for each feature of it. Raises ValueError."""
    source, token, read = family.source, family.image_token, model.config.image_token_id
    written = family.tokenizer.convert_tokens_to_ids(token)
    if written != read:
        field = "image_token_index" if hasattr(model.config, "image_token_index") else "image_token_id"
        raise ValueError(
            f"{source}: the tokenizer gives {token!r} the id {written}, but {field} in config.json is {read}: "
            "set it to the tokenizer's, or use the tokenizer of this model"
        )
    count, expected = int((prompt.ids == read).sum()), count_features(model, family, prompt.inputs)
    if count != expected:
        raise ValueError(
            f"{source}: a picture has {count} image tokens in the prompt and {expected} features in the model. {family.describe_sizes()}"
        )


def count_features(model: Any, family: VisionFamily, inputs: dict[str, Any]) -> int:
    """The features that the model makes of the pictures. Raises ValueError for pictures that it cannot read."""
    import torch

    tensors = inputs_on_device(model, {name: inputs[name] for name in family.feature_inputs})
    try:
        with torch.inference_mode():
            result = model.get_image_features(**tensors)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        cause = describe_error(error, MAX_CAUSE_CHARS)
        raise ValueError(f"{family.source}: the model cannot read the test picture: {cause}. {family.describe_sizes()}") from error
    features = getattr(result, "pooler_output", result)  # older versions of transformers return the features themselves
    return sum(part.shape[:-1].numel() for part in features)


def describe_config(folder: Path) -> tuple[dict[str, str], int]:
    """The kinds of the vision and the text model, and the context length. Raises ValueError, and what transformers raises."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    return {"vision": config.vision_config.model_type, "text": text.model_type}, context_length(text, str(folder))


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
