"""What a picture shows, by its pixels alone: the ground is the colour along its edge, the shape's colour the next that covers most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ops.tiny.drawing import Place, cover
from ops.tiny.painter import load_painter
from ops.tiny.scenes import COLOURS, SHAPES, Scene, any_scene

EDGE = 16
"""Pixels."""
LEAST_SHARE = 0.02
"""Of the picture: what covers less is no shape."""
SPECK = 0.03
"""Of a side: a row or column with less of the shape in it is not the shape's."""
GRID = 64
"""Points to a side when outlines are compared."""
STEPS = 20
ROWS: tuple[tuple[float, str | None], ...] = ((1.0, None), (3.0, None), (7.5, None), (7.5, "ink"), (7.5, "night"), (7.5, "neat"))
"""Guidance and style."""


@dataclass(frozen=True)
class Seen:
    """`colour` and `shape`: None where there is no shape."""

    shape: str | None
    colour: str | None
    ground: str


def seen(pixels: Any) -> Seen:
    """`pixels`: height × width × 3, bytes."""
    import numpy as np

    colours = np.array([rgb for _, rgb in COLOURS.values()], dtype=np.int32)
    distances = ((np.asarray(pixels, dtype=np.int32)[:, :, None] - colours) ** 2).sum(-1)
    nearest = distances.argmin(-1)
    edges = [nearest[:EDGE], nearest[-EDGE:], nearest[:, :EDGE], nearest[:, -EDGE:]]
    ground = most(np.concatenate([edge.ravel() for edge in edges]))
    rest = nearest[nearest != ground]
    names = list(COLOURS)
    if rest.size < LEAST_SHARE * nearest.size:
        return Seen(None, None, names[ground])
    colour = most(rest)
    return Seen(shape_of(nearest == colour), names[colour], names[ground])


def most(numbers: Any) -> int:
    import numpy as np

    return int(np.bincount(numbers.ravel()).argmax())


def shape_of(inside: Any) -> str:
    """The shape whose outline, laid over the area's own box, fits best: most in common, of what either covers."""
    import torch

    area = fitted(boxed(torch.from_numpy(inside)))
    shares = {name: float((area * outline).sum() / torch.maximum(area, outline).sum()) for name, outline in outlines().items()}
    return max(shares, key=shares.__getitem__)


def boxed(area: Any) -> Any:
    """Cut to its box. Specks beside the shape do not count."""
    down, across = ((area.sum(side) >= SPECK * area.shape[side]).nonzero() for side in (1, 0))
    return area[down.min() : down.max() + 1, across.min() : across.max() + 1] if len(down) and len(across) else area


def fitted(area: Any) -> Any:
    """Squeezed into the grid, as shares."""
    import torch

    return torch.nn.functional.interpolate(area[None, None].float(), (GRID, GRID), mode="area")[0, 0]


def outlines() -> dict[str, Any]:
    """Each shape as it fills its own box."""
    return {name: fitted(boxed(cover(name, Place(256, 256, 200), 4, fine=0.5) > 0.5)) for name in SHAPES}


def asked_scenes(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes and one caption of each."""
    dice = Random(seed)
    scenes = [any_scene(dice) for _ in range(count)]
    return [(scene, dice.choice(scene.captions)) for scene in scenes]


def measured(model: Path, styles: Mapping[str, Path], pictures: int) -> dict[str, Any]:
    """What the checkpoint in a folder does with the stock pipeline: shares of pictures in which what was asked for is seen."""
    pipeline = load_painter(model)
    parameters = sum(weight.numel() for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for weight in part.parameters())
    rows = []
    for guidance, style in ROWS:
        if style:
            pipeline.load_lora_weights(styles[style])
        rows.append({"guidance": guidance, "style": style, **_row(pipeline, guidance, style, pictures)})
        pipeline.unload_lora_weights()
    return {"parameters": parameters, "pictures": pictures, "steps": STEPS, "rows": rows}


def _row(pipeline: Any, guidance: float, style: str | None, pictures: int) -> dict[str, float]:
    import torch

    asked = asked_scenes(pictures, seed=1)
    dice = torch.Generator().manual_seed(1)
    drawn: Sequence[Any] = pipeline(
        [caption for _, caption in asked], num_inference_steps=STEPS, guidance_scale=guidance, generator=dice, output_type="np"
    ).images
    found = [seen((picture * 255).round()) for picture in drawn]
    wanted = [in_style(scene, style) for scene, _ in asked]
    pairs = list(zip(found, wanted, strict=True))
    return {
        "colours_right": sum((one.colour, one.ground) == (two.colour, two.ground) for one, two in pairs) / pictures,
        "shape_right": sum(one.shape == two.shape for one, two in pairs) / pictures,
    }


def in_style(scene: Scene, style: str | None) -> Scene:
    """What the scene looks like then."""
    if style == "ink":
        return Scene(scene.shape, "black", "white")
    if style == "night":
        return Scene(scene.shape, "white" if scene.colour == "black" else scene.colour, "black")
    return scene
