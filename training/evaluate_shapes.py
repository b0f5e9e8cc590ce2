"""Evaluates tiny-shapes by pixels alone: the background is the colour along the edge, the shape's the one that covers most of the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from training.scenes import COLOURS, SHAPES, Scene, random_scene
from training.shape_masks import ShapePlacement, coverage_mask
from training.tiny_shapes import load_pipeline

EDGE_PIXELS = 16
"""Width of the edge."""
MIN_SHAPE_SHARE = 0.02
"""Of the image: a smaller area is not a shape."""
MIN_LINE_SHARE = 0.03
"""Of a side: a row or column with less of the shape does not belong to its bounding box."""
GRID_SIZE = 64
"""Side of the grid on which outlines are compared."""
SAMPLING_STEPS = 20
EVALUATION_ROWS: tuple[tuple[float, str | None], ...] = ((1.0, None), (3.0, None), (7.5, None), (7.5, "ink"), (7.5, "night"), (7.5, "neat"))
"""Guidance and style."""


@dataclass(frozen=True)
class DetectedScene:
    """`shape` and `colour` are None where no shape is found."""

    shape: str | None
    colour: str | None
    ground: str


def detect_scene(pixels: Any) -> DetectedScene:
    """`pixels`: an array of height × width × 3 bytes."""
    import numpy as np

    colours = np.array([rgb for _, rgb in COLOURS.values()], dtype=np.int32)
    distances = ((np.asarray(pixels, dtype=np.int32)[:, :, None] - colours) ** 2).sum(-1)
    nearest = distances.argmin(-1)
    edges = [nearest[:EDGE_PIXELS], nearest[-EDGE_PIXELS:], nearest[:, :EDGE_PIXELS], nearest[:, -EDGE_PIXELS:]]
    ground = most_frequent(np.concatenate([edge.ravel() for edge in edges]))
    rest = nearest[nearest != ground]
    names = list(COLOURS)
    if rest.size < MIN_SHAPE_SHARE * nearest.size:
        return DetectedScene(None, None, names[ground])
    colour = most_frequent(rest)
    return DetectedScene(classify_shape(nearest == colour), names[colour], names[ground])


def most_frequent(numbers: Any) -> int:
    import numpy as np

    return int(np.bincount(numbers.ravel()).argmax())


def classify_shape(mask: Any) -> str:
    """The shape whose outline in the mask's bounding box has the highest intersection over union."""
    import torch

    grid = resize_to_grid(crop_to_bounding_box(torch.from_numpy(mask)))
    shares = {name: float((grid * outline).sum() / torch.maximum(grid, outline).sum()) for name, outline in reference_masks().items()}
    return max(shares, key=shares.__getitem__)


def crop_to_bounding_box(mask: Any) -> Any:
    """Specks beside the shape are ignored."""
    down, across = ((mask.sum(side) >= MIN_LINE_SHARE * mask.shape[side]).nonzero() for side in (1, 0))
    return mask[down.min() : down.max() + 1, across.min() : across.max() + 1] if len(down) and len(across) else mask


def resize_to_grid(mask: Any) -> Any:
    """The covered share of each cell of the grid."""
    import torch

    return torch.nn.functional.interpolate(mask[None, None].float(), (GRID_SIZE, GRID_SIZE), mode="area")[0, 0]


def reference_masks() -> dict[str, Any]:
    """Each shape, filling its bounding box."""
    return {
        name: resize_to_grid(crop_to_bounding_box(coverage_mask(name, ShapePlacement(256, 256, 200), 4, points_per_pixel=0.5) > 0.5))
        for name in SHAPES
    }


def sample_scenes(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes with one caption each."""
    rng = Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    return [(scene, rng.choice(scene.captions)) for scene in scenes]


def evaluate_shapes(model: Path, styles: Mapping[str, Path], sample_count: int) -> dict[str, Any]:
    """The shares of the stock pipeline's images that have the requested colours and shape, by guidance and style."""
    pipeline = load_pipeline(model)
    parameters = sum(weight.numel() for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for weight in part.parameters())
    rows = []
    for guidance, style in EVALUATION_ROWS:
        if style:
            pipeline.load_lora_weights(styles[style])
        rows.append({"guidance": guidance, "style": style, **_evaluate_row(pipeline, guidance, style, sample_count)})
        pipeline.unload_lora_weights()
    return {"parameters": parameters, "pictures": sample_count, "steps": SAMPLING_STEPS, "rows": rows}


def _evaluate_row(pipeline: Any, guidance: float, style: str | None, sample_count: int) -> dict[str, float]:
    import torch

    samples = sample_scenes(sample_count, seed=1)
    generator = torch.Generator().manual_seed(1)
    images: Sequence[Any] = pipeline(
        [caption for _, caption in samples],
        num_inference_steps=SAMPLING_STEPS,
        guidance_scale=guidance,
        generator=generator,
        output_type="np",
    ).images
    detected = [detect_scene((image * 255).round()) for image in images]
    expected = [expected_scene(scene, style) for scene, _ in samples]
    pairs = list(zip(detected, expected, strict=True))
    return {
        "colours_right": sum((scene.colour, scene.ground) == (target.colour, target.ground) for scene, target in pairs) / sample_count,
        "shape_right": sum(scene.shape == target.shape for scene, target in pairs) / sample_count,
    }


def expected_scene(scene: Scene, style: str | None) -> Scene:
    """The scene as it looks in the style."""
    if style == "ink":
        return Scene(scene.shape, "black", "white")
    if style == "night":
        return Scene(scene.shape, "white" if scene.colour == "black" else scene.colour, "black")
    return scene
