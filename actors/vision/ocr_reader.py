"""Reads the text of a picture, inside a decoder process, with the models that RapidOCR carries. Nothing is ever downloaded.

Lines are found in any script. They are read only when the model knows every character that is looked for: of a script that it lacks,
it would read something else.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from actors.decoding.protocol import Refused
from actors.vision.ocr_evidence import fold_text

DETECTION, ORIENTATION, RECOGNITION = "PP-OCRv6_det_small.onnx", "ch_ppocr_mobile_v2.0_cls_mobile.onnx", "PP-OCRv6_rec_small.onnx"
MIN_CONFIDENCE = 0.5
"""A line that is read with less is left out."""
MAX_SIDE = 4096
"""The worker has scaled the picture; RapidOCR would enlarge a narrow one to hundreds of millions of pixels."""
UPRIGHT_RATIO = 1.5
"""A box that is this much higher than wide has its text turned by a quarter."""


def read_lines(data: bytes, *, width: int, height: int, model: str | None, threads: int, characters: str) -> tuple[dict[str, Any], bytes]:
    """The lines of an RGB picture, from top to bottom. `characters`: those of the text that is looked for.

    Each line has `text` (None when `characters` are not the model's), `confidence`, `box` (left, top, right, bottom in pixels) and `height`
    (pixels, across the writing). `unknown`: the characters that the model lacks. Raises Refused for a model that cannot be used.
    """
    import numpy

    engine, known = open_engine(model, threads)
    unknown = "".join(sorted(set(characters) - known))
    pixels = numpy.frombuffer(data, dtype=numpy.uint8).reshape(height, width, 3)[:, :, ::-1]
    found = engine(numpy.ascontiguousarray(pixels), use_det=True, use_cls=not unknown, use_rec=not unknown)
    boxes = [] if found.boxes is None else found.boxes.tolist()
    texts = getattr(found, "txts", None) or [None] * len(boxes)
    scores = found.scores if found.scores is not None else []
    lines = [
        {"text": text, "confidence": round(min(1.0, float(score)), 4)} | measure_box(box)
        for box, text, score in zip(boxes, texts, scores, strict=True)
    ]
    return {"lines": lines, "model": Path(model or RECOGNITION).stem, "unknown": unknown}, b""


@lru_cache(maxsize=1)
def open_engine(model: str | None, threads: int) -> tuple[Any, frozenset[str]]:
    """RapidOCR, and the characters that the recognition model knows, as they are and folded. Raises Refused("ocr-model-unusable")."""
    import cv2
    import rapidocr

    cv2.setNumThreads(threads)
    carried = Path(rapidocr.__file__).parent / "models"
    recognition = model or str(carried / RECOGNITION)
    characters = read_characters(recognition)
    parameters = {
        "Global.log_level": "error",
        "Global.text_score": MIN_CONFIDENCE,
        "Global.max_side_len": MAX_SIDE,
        "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "Det.limit_type": "max",
        "Det.limit_side_len": MAX_SIDE,
        "Det.model_path": str(carried / DETECTION),
        "Cls.model_path": str(carried / ORIENTATION),
        "Rec.model_path": recognition,
    }
    known = frozenset(fold_text(characters)).union(characters)  # also a mark that stands alone in the list, which is no text
    return rapidocr.RapidOCR(params=parameters), known


def read_characters(model: str) -> str:
    """RapidOCR would download them for a model without."""
    import onnxruntime

    try:
        metadata = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    except Exception as error:  # The library has no error of its own for a file that is no model.
        raise Refused("ocr-model-unusable", f"OCR_MODEL {model} cannot be loaded: {error}") from error
    if not metadata.get("character"):
        raise Refused("ocr-model-unusable", f"OCR_MODEL {model} has no `character` in its metadata: take a model of RapidOCR")
    return str(metadata["character"])


def measure_box(corners: list[list[float]]) -> dict[str, Any]:
    """The upright rectangle around four corners, and the height of the line. Corners go round from the upper left."""
    columns, rows = [x for x, _ in corners], [y for _, y in corners]
    width, height = _distance(corners[0], corners[1]), _distance(corners[0], corners[3])
    return {
        "box": [min(columns), min(rows), max(columns), max(rows)],
        "height": round(width if height >= UPRIGHT_RATIO * width else height, 2),
    }


def _distance(one: list[float], other: list[float]) -> float:
    return float(((one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2) ** 0.5)
