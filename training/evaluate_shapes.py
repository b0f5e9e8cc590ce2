"""What a picture shows, by its pixels alone: the ground is the colour along its edge, the shape's colour the next that covers most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from training.scenes import COLOURS, SHAPES, Scene, random_scene
from training.shape_masks import ShapePlacement, coverage_mask
from training.tiny_shapes import load_pipeline

EDGE_PIXELS = 16
"""Pixels."""
MIN_SHAPE_SHARE = 0.02
"""Of the picture: what covers less is no shape."""
MIN_LINE_SHARE = 0.03
"""Of a side: a row or column with less of the shape in it is not the shape's."""
GRID_SIZE = 64
"""Points to a side when outlines are compared."""
SAMPLING_STEPS = 20
EVALUATION_ROWS: tuple[tuple[float, str | None], ...] = ((1.0, None), (3.0, None), (7.5, None), (7.5, "ink"), (7.5, "night"), (7.5, "neat"))
"""Guidance and style."""


@dataclass(frozen=True)
class DetectedScene:
    """`colour` and `shape`: None where there is no shape."""

    shape: str | None
    colour: str | None
    ground: str


def detect_scene(pixels: Any) -> DetectedScene:
    """`pixels`: height × width × 3, bytes."""
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
    """The shape whose outline, laid over the area's own box, fits best: most in common, of what either covers."""
    import torch

    area = resize_to_grid(crop_to_bounding_box(torch.from_numpy(mask)))
    shares = {name: float((area * outline).sum() / torch.maximum(area, outline).sum()) for name, outline in reference_masks().items()}
    return max(shares, key=shares.__getitem__)


def crop_to_bounding_box(mask: Any) -> Any:
    """Cut to its box. Specks beside the shape do not count."""
    down, across = ((mask.sum(side) >= MIN_LINE_SHARE * mask.shape[side]).nonzero() for side in (1, 0))
    return mask[down.min() : down.max() + 1, across.min() : across.max() + 1] if len(down) and len(across) else mask


def resize_to_grid(mask: Any) -> Any:
    """Squeezed into the grid, as shares."""
    import torch

    return torch.nn.functional.interpolate(mask[None, None].float(), (GRID_SIZE, GRID_SIZE), mode="area")[0, 0]


def reference_masks() -> dict[str, Any]:
    """Each shape as it fills its own box."""
    return {
        name: resize_to_grid(crop_to_bounding_box(coverage_mask(name, ShapePlacement(256, 256, 200), 4, points_per_pixel=0.5) > 0.5))
        for name in SHAPES
    }


def sample_scenes(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes and one caption of each."""
    dice = Random(seed)
    scenes = [random_scene(dice) for _ in range(count)]
    return [(scene, dice.choice(scene.captions)) for scene in scenes]


def evaluate_shapes(model: Path, styles: Mapping[str, Path], sample_count: int) -> dict[str, Any]:
    """What the checkpoint in a folder does with the stock pipeline: shares of pictures in which what was asked for is seen."""
    pipeline = load_pipeline(model)
    parameters = sum(weight.numel() for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for weight in part.parameters())
    rows = []
    for guidance, style in EVALUATION_ROWS:
        if style:
            pipeline.load_lora_weights(styles[style])
        rows.append({"guidance": guidance, "style": style, **_evaluate_row(pipeline, guidance, style, sample_count)})
        pipeline.unload_lora_weights()
    return {"parameters": parameters, "pictures": sample_count, "steps": SAMPLING_STEPS, "rows": rows}


def _evaluate_row(pipeline: Any, guidance: float, style: str | None, pictures: int) -> dict[str, float]:
    import torch

    asked = sample_scenes(pictures, seed=1)
    dice = torch.Generator().manual_seed(1)
    drawn: Sequence[Any] = pipeline(
        [caption for _, caption in asked], num_inference_steps=SAMPLING_STEPS, guidance_scale=guidance, generator=dice, output_type="np"
    ).images
    found = [detect_scene((picture * 255).round()) for picture in drawn]
    wanted = [expected_scene(scene, style) for scene, _ in asked]
    pairs = list(zip(found, wanted, strict=True))
    return {
        "colours_right": sum((one.colour, one.ground) == (two.colour, two.ground) for one, two in pairs) / pictures,
        "shape_right": sum(one.shape == two.shape for one, two in pairs) / pictures,
    }


def expected_scene(scene: Scene, style: str | None) -> Scene:
    """What the scene looks like then."""
    if style == "ink":
        return Scene(scene.shape, "black", "white")
    if style == "night":
        return Scene(scene.shape, "white" if scene.colour == "black" else scene.colour, "black")
    return scene
