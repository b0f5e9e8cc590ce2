"""Generated pictures as files: the format, the quality and the metadata, as another reader sees them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.engines.diffusion.picture_files import EXTENSIONS, MAX_METADATA_BYTES, MEDIA_TYPES, write_picture
from contracts.claim import ImageFormat

METADATA = {"seed": "7", "scheduler": "dpm++", "prompt": "바다 위의 ☂ «quai»"}
PIXELS = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def read_metadata(picture: Image.Image) -> dict[str, str]:
    if picture.format == "PNG":
        return dict(picture.text)  # type: ignore[attr-defined]
    comment = picture.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"ASCII\0\0\0")
    return dict(json.loads(comment.removeprefix(b"ASCII\0\0\0").decode("ascii")))


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_picture_is_of_its_format_and_says_how_it_was_made(tmp_path: Path, output_format: ImageFormat) -> None:
    file = tmp_path / f"picture.{EXTENSIONS[output_format]}"

    write_picture(file, PIXELS, METADATA, output_format)

    with Image.open(file) as picture:
        picture.load()
        assert picture.get_format_mimetype() == MEDIA_TYPES[output_format]
        assert (picture.size, picture.mode) == ((56, 40), "RGB")
        assert read_metadata(picture) == METADATA
        if output_format == "png":
            assert np.array_equal(np.asarray(picture), PIXELS)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_quality_decides_the_size_and_is_90_by_default(tmp_path: Path, output_format: ImageFormat) -> None:
    sizes = {}
    for quality in (10, 90, 100, None):
        write_picture(tmp_path / "picture", PIXELS, METADATA, output_format, quality)
        sizes[quality] = (tmp_path / "picture").stat().st_size

    assert sizes[10] < sizes[90] < sizes[100]
    assert sizes[None] == sizes[90]


def test_a_jpeg_keeps_thin_coloured_lines(tmp_path: Path) -> None:
    """Chroma subsampling would mix the colours of neighbouring columns."""
    stripes = np.zeros((16, 16, 3), dtype=np.uint8)
    stripes[:, ::2, 0] = 255
    stripes[:, 1::2, 2] = 255

    write_picture(tmp_path / "stripes.jpg", stripes, {}, "jpeg", 100)

    with Image.open(tmp_path / "stripes.jpg") as picture:
        assert np.abs(np.asarray(picture).astype(int) - stripes).max() < 12


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_metadata_beyond_what_a_file_holds_is_refused(tmp_path: Path, output_format: ImageFormat) -> None:
    write_picture(tmp_path / "longest", PIXELS, {"note": "x" * (MAX_METADATA_BYTES - 20)}, output_format)

    with pytest.raises(ValueError, match="has 60,012 bytes as JSON; a file holds 60,000"):
        write_picture(tmp_path / "longer", PIXELS, {"note": "x" * MAX_METADATA_BYTES}, output_format)
