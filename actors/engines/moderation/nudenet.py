"""NudeNet: the detector in the wheel of `nudenet`, an ONNX model of 320 × 320 pixels, run by onnxruntime on the CPU.

The package itself is not imported: its code decodes files with OpenCV, and pictures are decoded in a process of their own here.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

LABELS = (
    *("female-genitalia-covered", "face-female", "buttocks-exposed", "female-breast-exposed", "female-genitalia-exposed"),
    *("male-breast-exposed", "anus-exposed", "feet-exposed", "belly-covered", "feet-covered", "armpits-covered", "armpits-exposed"),
    *("face-male", "belly-exposed", "male-genitalia-exposed", "anus-covered", "female-breast-covered", "buttocks-covered"),
)
"""In the order of the model's classes."""
SIDE, BOX_VALUES = 320, 4


class NudeNet:
    """Scores of a picture by label. Raises ValueError for a model of another form."""

    name = "nudenet"

    def __init__(self, model: Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        shape = self._session.get_outputs()[0].shape
        if len(shape) != 3 or shape[1] != BOX_VALUES + len(LABELS):
            raise ValueError(f"{model} is no NudeNet detector: its output is {shape}, not [1, {BOX_VALUES + len(LABELS)}, n]")

    def scores(self, picture: Image.Image) -> dict[str, float]:
        """The highest score of each label, 0 where it is not found. `picture`: RGB of any size."""
        (output,) = self._session.run(None, {self._input: to_input(picture)})
        return label_scores(output)


def packaged_model() -> Path:
    """The model in the wheel. Raises FileNotFoundError."""
    package = find_spec("nudenet")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("the package nudenet is not installed: install the extra `moderation`")
    return Path(package.submodule_search_locations[0]) / "320n.onnx"


def to_input(picture: Image.Image) -> Any:
    """(1, 3, 320, 320) in float32 from 0 to 1, blue before green before red: the picture at the top left of a black square, scaled.

    The order of the channels is the package's, with which its results were published. The scaling is not: the package takes four pixels of
    the original for each of the input, so that a picture can hide what it shows between them; here every pixel counts.
    """
    import numpy

    side = max(picture.size)
    square = Image.new("RGB", (side, side))
    square.paste(picture)
    values = numpy.asarray(square.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=numpy.float32) / 255
    return numpy.ascontiguousarray(values[:, :, ::-1].transpose(2, 0, 1)[None])


def label_scores(output: Any) -> dict[str, float]:
    """`output`: (1, 4 + labels, boxes). A box counts for its likeliest label alone; boxes of one label that overlap need not be merged,
    since the highest score remains."""
    scores = output[0][BOX_VALUES:]
    likeliest, highest = scores.argmax(0), scores.max(0)
    return {label: float(highest[likeliest == index].max(initial=0.0)) for index, label in enumerate(LABELS)}
