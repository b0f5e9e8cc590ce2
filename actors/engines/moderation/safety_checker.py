"""Stable Diffusion's safety checker, which some checkpoints carry. It knows `unsafe` or not, and changes no picture here."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

UNSAFE = "unsafe"
MAX_RATIO = 8
"""Of the sides. The processor scales the shorter side to that of the model, and with it a longer one to any length."""


class SafetyChecker:
    """A checkpoint of the class StableDiffusionSafetyChecker on one device. Raises OSError and ValueError for a folder that has none."""

    name = "safety-checker"

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 1) -> None:
        import torch
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        torch.set_num_threads(threads)
        weights, features = parts_of(folder)
        self._features: Any = CLIPImageProcessor.from_pretrained(features, local_files_only=True)
        checker = StableDiffusionSafetyChecker.from_pretrained(weights, local_files_only=True, use_safetensors=True)
        self._checker: Any = checker.to(device).eval()
        self._device = device

    def scores(self, picture: Image.Image) -> dict[str, float]:
        """1 for a picture that it flags, else 0. `picture`: RGB of any size."""
        import numpy
        import torch

        features = self._features(limit_ratio(picture), return_tensors="pt").to(self._device)
        pixels = numpy.zeros((1, 8, 8, 3), dtype=numpy.float32)  # it paints what it flags black, and gets nothing to paint
        with torch.inference_mode():
            _, flags = self._checker(images=pixels, clip_input=features.pixel_values)
        return {UNSAFE: float(bool(flags[0]))}


def limit_ratio(picture: Image.Image) -> Image.Image:
    """The picture, with black beside it where one side is more than MAX_RATIO times the other."""
    shortest = -(-max(picture.size) // MAX_RATIO)
    size = (max(picture.width, shortest), max(picture.height, shortest))
    return picture if size == picture.size else ImageOps.pad(picture, size)


def parts_of(folder: Path) -> tuple[Path, Path]:
    """The folders of the weights and of the processor: those of a whole checkpoint, or twice the checker's own. Raises ValueError."""
    if (folder / "safety_checker").is_dir():
        weights, features = folder / "safety_checker", folder / "feature_extractor"
    else:
        weights = features = folder
    missing = [path for path in (weights / "config.json", features / "preprocessor_config.json") if not path.is_file()]
    if missing:
        raise ValueError(f"MODERATION_CHECKER is no safety checker: {', '.join(map(str, missing))} is missing")
    return weights, features
