"""The text chunks of a PNG, and how they are passed from actor to actor.

Rules: a picture's own chunks are kept, because only they describe this one picture of the order (such as its seed). Authoritative values
(artist, job) replace them; the order's metadata only adds missing keys. A picture that no model of ours generated gets no chunk that says
how it was generated, neither from its file nor from the order: both are its sender's. Characters beyond Latin-1 go into iTXt as UTF-8,
the rest into tEXt, as the PNG specification requires. EXIF, colour profiles and all other data are dropped.
"""

import io
import json
import re
from collections.abc import Mapping

import structlog
from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEYWORD_PATTERN = re.compile(r"[!-~\xa1-\xff](?:[ -~\xa1-\xff]{0,77}[!-~\xa1-\xff])?")
MAX_VALUE_CHARS = 32_768
GENERATION_KEYS = frozenset(
    {"family", "model", "model_sha256", "prompt_sha256", "seed", "steps", "guidance_scale", "true_cfg_scale", "scheduler"}
    | {"edit", "strength", "control", "control_scale"}
    | {"lora_sha256", "lora_scale", "lora_scaling", "lora_alpha_from"}
    | {"diffusers_version", "torch_version", "transformers_version", "peft_version"}
)
"""The keys by which the image step says how it generated a picture, in lower case."""

log = structlog.get_logger()


def merge_text_chunks(
    existing: Mapping[str, str], order_metadata: Mapping[str, object], authoritative: Mapping[str, str | None], *, generated: bool
) -> dict[str, str]:
    """The chunks to write: `authoritative` before `existing` before `order_metadata`; GENERATION_KEYS only for a generated picture."""
    taken = {key.lower() for key in existing}  # `Seed` is no second value of `seed`
    defaults = {key: to_chunk_text(value) for key, value in order_metadata.items() if value is not None and key.lower() not in taken}
    described = {key: value for key, value in {**defaults, **existing}.items() if generated or key.lower() not in GENERATION_KEYS}
    ranked = {**described, **{key: value for key, value in authoritative.items() if value}}
    return {key: value for key, value in ranked.items() if is_valid_chunk(key, value)}


def to_chunk_text(value: object) -> str:
    """A string unchanged, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def is_valid_chunk(key: str, value: str) -> bool:
    """Whether a PNG can hold the chunk. An invalid one is skipped with a warning, because no order should fail for it."""
    if KEYWORD_PATTERN.fullmatch(key) and "  " not in key and len(value) <= MAX_VALUE_CHARS and "\0" not in value:
        return True
    log.warning("chunk.skipped", key=key[:80], length=len(value))
    return False


def encode_png(picture: Image.Image, text_chunks: Mapping[str, str]) -> bytes:
    info = PngInfo()
    for key, value in text_chunks.items():
        info.add_text(key, value)
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=info)
    return file.getvalue()
