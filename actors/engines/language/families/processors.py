"""Loads a processor for pictures and text alone, so that torchvision is not needed.

Processors of newer families also insist on a processor of videos, which cannot be loaded without torchvision. They are loaded without it:
the same class, with the attributes that are left. Image processors whose published name ends in `Fast` are loaded as the class that needs
Pillow only; transformers chooses it itself where torchvision is missing.
"""

from typing import Any

from actors.engines.language.requests import VlmOptions

VIDEO_PROCESSOR = "video_processor"


def load_processor(class_name: str, options: VlmOptions) -> Any:
    """The processor of `options.model`, of the class of transformers of that name. Raises what transformers raises."""
    import transformers

    kind = without_videos(getattr(transformers, class_name))
    return kind.from_pretrained(options.model, cache_dir=options.cache_dir, backend="pil")


def without_videos(kind: Any) -> Any:
    """The processor class `kind` without its processor of videos; `kind` itself where it has none."""
    if VIDEO_PROCESSOR not in kind.get_attributes():
        return kind

    attributes = [name for name in kind.get_attributes() if name != VIDEO_PROCESSOR]
    # The class keeps its name, which is written into saved files.
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: attributes)})
