"""The text of pictures, read by RapidOCR in its own process; pictures that it cannot read; and the extra's absence."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from PIL import Image

from actors.vision.ocr import TextReader, open_text_reader, parse_lines
from actors.vision.ocr_settings import OcrSettings
from bus.errors import PermanentError
from contracts.verdict import Evidence
from tests.support.broker_client import wait_until
from tests.support.rendered_ads import STANDING_FOR, draw_lines, render_ad, write_hangul_model

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
COPY = "Fresh ramen tonight. Buy now!"
NOISE = Image.effect_noise((1280, 1280), 100)
SETTINGS = OcrSettings(threads=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader() -> AsyncIterator[TextReader]:
    async with open_text_reader(SETTINGS) as reader:
        assert reader is not None
        yield reader


def ocr_processes() -> set[int]:
    """Processes that have loaded the library; pictures and documents are decoded in others."""
    children = [child for child in psutil.Process().children() if "actors.decoding.process" in child.cmdline()]
    return {child.pid for child in children if any("onnxruntime" in file.path for file in child.memory_maps())}


def processor_seconds(process: psutil.Process) -> float:
    """An idle process takes none."""
    times = process.cpu_times()
    return float(times.user + times.system)


@pytest.mark.parametrize("size", [(256, 256), (512, 512), (1600, 1000)])
async def test_copy_drawn_by_overlay_is_read_without_error(reader: TextReader, size: tuple[int, int]) -> None:
    picture, region = render_ad(COPY, size)
    evidence = Evidence.model_validate(await reader.measure(picture, COPY, region))
    assert evidence.character_error_rate == 0
    assert evidence.calls_to_action == ["buy", "buy now"]
    assert evidence.text_height_share is not None
    assert 0.05 < evidence.text_height_share < 0.15
    assert not evidence.text_too_small
    assert evidence.text_lines
    assert {line.cer for line in evidence.text_lines} == {0}


@pytest.mark.parametrize("emoji", ["❤\ufe0f", "☀\ufe0f", "1\ufe0f\u20e3", "👍🏽", "´"])
async def test_emoji_in_the_copy_are_no_unknown_characters(reader: TextReader, emoji: str) -> None:
    """They are not drawn, and their variation selectors and marks are no characters that the model would have to know."""
    copy = f"Love it {emoji} now"
    picture, region = render_ad(copy)
    evidence = Evidence.model_validate(await reader.measure(picture, copy, region))
    assert (evidence.unknown_characters, evidence.character_error_rate) == (None, 0)


async def test_text_turned_by_a_quarter_is_read(reader: TextReader) -> None:
    upright, _ = render_ad(COPY)
    fields = await reader.measure(upright.rotate(90), COPY, None)
    straight = await reader.measure(upright, COPY, None)
    assert fields["character_error_rate"] == 0
    assert fields["text_height"] == pytest.approx(straight["text_height"], rel=0.15)


async def test_other_text_and_hidden_text_have_errors(reader: TextReader) -> None:
    picture, region = render_ad("Cold noodles yesterday")
    assert (await reader.measure(picture, COPY, region))["character_error_rate"] > 0.5
    hidden = draw_lines(COPY, 32, color="#212121")
    assert (await reader.measure(hidden, COPY, None))["character_error_rate"] == 1


async def test_tiny_text_is_too_small(reader: TextReader) -> None:
    copy = "Buy now, only today"
    small, larger = [await reader.measure(draw_lines(copy, font_size), copy, None) for font_size in (8, 12)]
    assert (small["character_error_rate"], small["text_too_small"]) == (0, True)
    assert (larger["character_error_rate"], larger["text_too_small"]) == (0, False)


async def test_picture_without_text_has_no_lines(reader: TextReader) -> None:
    fields = await reader.measure(Image.new("RGB", (1, 900), "white"), COPY, None)
    assert (fields["text_lines"], fields["text_read"], fields["character_error_rate"]) == ([], "", 1)


async def test_korean_copy_is_not_compared_by_a_model_without_hangul(reader: TextReader) -> None:
    """Nothing that the model misreads is reported; the lines are found and measured all the same."""
    picture, region = render_ad("따뜻한 한 그릇")
    evidence = Evidence.model_validate(await reader.measure(picture, "따뜻한 한 그릇", region))
    assert evidence.unknown_characters == "그따뜻릇한"
    assert evidence.text_height_share is not None
    assert (evidence.text_read, evidence.character_error_rate, evidence.calls_to_action, evidence.text_lines) == (None,) * 4


async def test_korean_copy_is_compared_by_a_model_with_hangul(tmp_path: Path) -> None:
    """OCR_MODEL: a model whose list has Hangul. What is drawn are the characters that it calls so."""
    settings = SETTINGS.model_copy(update={"model": write_hangul_model(tmp_path / "hangul.onnx")})
    async with open_text_reader(settings) as korean:
        assert korean is not None
        fields = await korean.measure(draw_lines("".join(STANDING_FOR), 60), "".join(STANDING_FOR.values()), None)
    assert (fields["ocr_model"], fields["text_read"], fields["character_error_rate"]) == ("hangul", "가나다라마", 0)


async def test_unusable_model_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"no model")
    async with open_text_reader(SETTINGS.model_copy(update={"model": path})) as broken:
        assert broken is not None
        assert await broken.measure(NOISE, COPY, None) == {"text_unread": "ocr-model-unusable"}
    with pytest.raises(ValueError, match="model"):
        OcrSettings(model=tmp_path / "missing.onnx")


async def test_picture_that_takes_too_long_is_given_up_and_the_next_is_read() -> None:
    before = ocr_processes()
    async with open_text_reader(SETTINGS) as reader:
        assert reader is not None
        picture, region = render_ad(COPY)
        assert (await reader.measure(picture, COPY, region))["character_error_rate"] == 0
        first = ocr_processes() - before
        assert (await reader.measure(picture, COPY, region))["character_error_rate"] == 0
        assert ocr_processes() - before == first, "one process reads all pictures"
        reader.settings = SETTINGS.model_copy(update={"seconds": 0.2})
        assert await reader.measure(NOISE, COPY, None) == {"text_unread": "ocr-too-costly"}
        reader.settings = SETTINGS
        assert (await reader.measure(picture, COPY, region))["character_error_rate"] == 0
        assert not ocr_processes() & first
        second = ocr_processes() - before
    assert second
    assert not ocr_processes() & second, "closing ends the process"


async def test_picture_that_takes_too_much_memory_is_given_up() -> None:
    async with open_text_reader(SETTINGS.model_copy(update={"memory_bytes": 1 << 29})) as reader:
        assert reader is not None
        fields = await reader.measure(NOISE, COPY, None)
    assert fields["text_unread"] in ("ocr-failed", "ocr-too-costly")


async def test_process_killed_while_it_reads_is_replaced(reader: TextReader) -> None:
    picture, region = render_ad(COPY)
    await reader.measure(picture, COPY, region)
    (pid,) = ocr_processes()
    process = psutil.Process(pid)
    before = processor_seconds(process)
    task = asyncio.create_task(reader.measure(NOISE, COPY, None))
    await wait_until(lambda: asyncio.sleep(0, processor_seconds(process) > before + 0.05), 60)
    assert not task.done()
    process.kill()
    assert (await task)["ocr_model"] == "PP-OCRv6_rec_small"
    assert ocr_processes()
    assert pid not in ocr_processes()


@pytest.mark.parametrize(
    "header",
    [{}, {"lines": [{"box": [1], "text": "x", "confidence": 1, "height": 3}], "model": "m", "unknown": ""}, {"lines": 3, "model": "m"}],
)
async def test_answer_of_another_form_is_refused(header: dict[str, object]) -> None:
    with pytest.raises(PermanentError, match="another form"):
        parse_lines(header, (64, 64), (64, 64))


ABSENT = """
import asyncio, sys
for name in ("rapidocr", "onnxruntime", "cv2", "numpy"):
    sys.modules[name] = None
import actors.judge
from actors.vision.ocr import open_text_reader
from actors.vision.ocr_settings import OcrSettings
async def main():
    async with open_text_reader(OcrSettings()) as reader, open_text_reader(OcrSettings(enabled=False)) as off:
        print(reader, off)
asyncio.run(main())
"""


async def test_without_extra_there_is_no_reader_and_the_log_names_it() -> None:
    ended = subprocess.run([sys.executable, "-c", ABSENT], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout.splitlines()[-1] == "None None"
    assert ended.stdout.count("pip install 'atelier[ocr]'") + ended.stderr.count("pip install 'atelier[ocr]'") == 1
