"""NudeNet: the real detector on drawn pictures, and the reading of its output."""

from pathlib import Path
from typing import Any

import numpy
import pytest
from nudenet import nudenet
from PIL import Image

from actors.engines.moderation.nudenet import BOX_VALUES, LABELS, NudeNet, label_scores, packaged_model, to_input
from tests.support.moderated_pictures import draw_harmless_picture, draw_suspicious_picture

MODEL = packaged_model()


def package_input(picture: Image.Image) -> Any:
    return nudenet._read_image(numpy.asarray(picture)[:, :, ::-1])[0]


@pytest.fixture(scope="module")
def detector() -> NudeNet:
    return NudeNet(MODEL)


def test_drawn_skin_is_found_and_a_drawn_house_is_not(detector: NudeNet) -> None:
    """Two ellipses in the colour of skin are all that the real detector needs; nothing explicit lies in this repository."""
    suspicious, harmless = detector.scores(draw_suspicious_picture()), detector.scores(draw_harmless_picture())
    assert suspicious["buttocks-exposed"] > 0.6
    assert max(harmless.values()) < 0.2
    assert set(suspicious) == set(harmless) == set(LABELS)


@pytest.mark.parametrize("size", [(1, 1), (8, 4000), (4000, 8), (319, 321)])
def test_picture_of_any_size_is_read(detector: NudeNet, size: tuple[int, int]) -> None:
    assert all(0 <= score <= 1 for score in detector.scores(Image.new("RGB", size, "white")).values())


@pytest.mark.parametrize("size", [(320, 320), (200, 100), (100, 200), (640, 640), (1000, 700)])
def test_input_is_that_of_the_package(size: tuple[int, int]) -> None:
    """Its own function gets the pixels as OpenCV reads a file: blue before green before red."""
    picture = draw_suspicious_picture().resize(size)
    package = package_input(picture)
    assert package.shape == to_input(picture).shape
    assert abs(to_input(picture) - package).max() < 0.15  # between the picture and the black beside it
    assert abs(to_input(picture) - package).mean() < 0.002


def test_channels_are_in_the_order_of_the_package() -> None:
    picture = Image.new("RGB", (200, 100), (255, 128, 0))
    values, package = to_input(picture), package_input(picture)
    assert (values.shape, values.dtype) == ((1, 3, 320, 320), numpy.float32)
    assert values[0, :, 10, 10] == pytest.approx([0, 128 / 255, 1])
    assert values[0, :, 300, 10] == pytest.approx([0, 0, 0])
    assert package[0, :, 10, 10] == pytest.approx([0, 128 / 255, 1])


def test_score_is_that_of_the_package(detector: NudeNet) -> None:
    picture = draw_suspicious_picture()
    (found,) = nudenet.NudeDetector().detect(numpy.asarray(picture)[:, :, ::-1])
    assert found["class"] == "BUTTOCKS_EXPOSED"
    assert detector.scores(picture)["buttocks-exposed"] == pytest.approx(found["score"], abs=0.01)


def test_picture_between_the_pixels_that_the_package_takes_is_seen(detector: NudeNet) -> None:
    """The reason why the scaling is not the package's: of eight by eight pixels it takes four, and a file may have others there."""
    shown = draw_suspicious_picture().resize((2560, 2560), Image.Resampling.NEAREST)
    values, harmless = numpy.array(shown), numpy.asarray(draw_harmless_picture().resize((320, 320)))
    for row, column in ((3, 3), (3, 4), (4, 3), (4, 4)):
        values[row::8, column::8] = harmless
    crafted = Image.fromarray(values)
    seen = label_scores(detector._session.run(None, {detector._input: package_input(crafted)})[0])
    assert seen["buttocks-exposed"] < 0.05
    assert detector.scores(crafted)["buttocks-exposed"] > 0.4


def test_box_counts_for_its_likeliest_label_and_the_highest_box_for_a_label() -> None:
    output = numpy.zeros((1, BOX_VALUES + len(LABELS), 3), dtype=numpy.float32)
    output[0, :BOX_VALUES] = 300  # coordinates are no scores
    output[0, BOX_VALUES + LABELS.index("anus-exposed")] = [0.3, 0.7, 0.1]
    output[0, BOX_VALUES + LABELS.index("face-male")] = [0.2, 0.1, 0.6]
    output[0, BOX_VALUES + LABELS.index("belly-exposed")] = [0.25, 0.65, 0.5]
    scores = label_scores(output)
    assert {label: round(score, 2) for label, score in scores.items() if score} == {"anus-exposed": 0.7, "face-male": 0.6}


def test_labels_are_those_of_the_package_in_its_order() -> None:
    """Read from its source, since importing it would need OpenCV."""
    source = (MODEL.parent / "nudenet.py").read_text()
    names = source.partition("__labels = [")[2].partition("]")[0]
    assert [name.strip().strip('"').lower().replace("_", "-") for name in names.split(",") if name.strip()] == list(LABELS)


def test_file_that_is_no_model_raises(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(MODEL.read_bytes()[:10_000])
    with pytest.raises(Exception, match=r"(?i)protobuf|load model"):
        NudeNet(broken)
