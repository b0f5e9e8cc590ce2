"""Prompts that are longer than the text encoder reads at once: they are read whole or refused with their length, and never cut in silence.
No log has their words.

The tiny model's tokens are bytes, and its limit is the real one: 77 with the two that mark begin and end.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.process.protocol import Failed, Finished
from ops.local.tiny_models import make_tiny_models
from tests.support.engine_fixture import StockPipeline, draw_images, max_pixel_difference, open_image_engine, run_to_end

pytestmark = [
    pytest.mark.models, pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

WINDOW = 75
"""Tokens that are read at once."""
SECRET = "for patient Maria Example born 1970"
LONG = "a cat sits on a red chair beside a window with a green curtain and a lamp, watercolour, " * 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def engine(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiffusionEngine]:
    opened = open_image_engine(models, tmp_path_factory.mktemp("shm"))
    yield opened
    opened.close()


def request(prompt: str, **changes: Any) -> DiffusionRequest:
    return DiffusionRequest(**{"prompt": prompt, "seed": 1, "width": 64, "height": 64, "steps": 2, **changes})


def draw(engine: DiffusionEngine, prompt: str, **changes: Any) -> bytes:
    """The pixels."""
    engine.submit(1, request(prompt, **changes))
    event = run_to_end(engine, [1])[1]
    assert isinstance(event, Finished), event
    return Pillow.open(event.output_files[0]).tobytes()


def refuse(engine: DiffusionEngine, prompt: str, **changes: Any) -> Failed:
    engine.submit(1, request(prompt, **changes))
    event = run_to_end(engine, [1])[1]
    assert isinstance(event, Failed), event
    return event


END_IS_READ = {
    "the first token beyond a window: AUTOMATIC1111/stable-diffusion-webui #2275": ("x" * WINDOW, "y"),
    "Korean characters are three tokens here: huggingface/diffusers #447": ("가" * 25, "나"),
    "commas count: openvinotoolkit/stable-diffusion-webui #25": (" , ".join(["snow"] * 20), ", rain"),
    "weights are text: haofanwang/Lora-for-Diffusers #6": ("(closed shirt:1.3), <offset:1>, " * 3, "(red:2)"),
    "the last token of eight windows: huggingface/diffusers #2136": ("x" * (8 * WINDOW - 1), "y"),
}


@pytest.mark.parametrize(("beginning", "end"), END_IS_READ.values(), ids=END_IS_READ)
def test_end_of_a_long_prompt_is_read(engine: DiffusionEngine, beginning: str, end: str) -> None:
    assert draw(engine, beginning + end) != draw(engine, beginning)


def test_stock_pipeline_does_not_read_the_end(models: dict[str, Path], engine: DiffusionEngine) -> None:
    """pharmapsychotic/clip-interrogator #65. So the comparison above can fail."""
    stock, size = StockPipeline(models["tiny-sd"]), {"guidance_scale": 7.5, "scheduler": "euler"}
    cut, whole = stock.draw(request(LONG, **size)), stock.draw(request(LONG + SECRET, **size))
    assert max_pixel_difference(cut, whole) == 0
    assert draw(engine, LONG, **size) != draw(engine, LONG + SECRET, **size)


def test_end_of_a_negative_prompt_is_read(engine: DiffusionEngine) -> None:
    """Negative prompts are often the longer ones: damian0815/compel #76."""
    assert draw(engine, "a cat", negative_prompt="x" * 100) != draw(engine, "a cat", negative_prompt="x" * 75)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("length", [8 * WINDOW + 1, 4000], ids=["one token", "as a message allows: ml-explore/mlx-examples #1327"])
def test_prompt_that_is_too_long_is_refused_with_its_length(engine: DiffusionEngine, field: str, length: int) -> None:
    event = refuse(engine, **{"prompt": "a cat", field: "x" * length})
    assert (event.kind, event.code) == ("permanent", "prompt-too-long")
    assert event.message == f"a prompt has {length} tokens; the model reads at most 600 (8 windows of 75): shorten it"


def test_negative_prompt_that_is_not_used_is_not_counted(engine: DiffusionEngine) -> None:
    """Without guidance there is no negative half (huggingface/diffusers #447): nothing of it is read."""
    assert draw(engine, "a cat", negative_prompt="x" * 4000, guidance_scale=1.0) == draw(engine, "a cat", guidance_scale=1.0)


def test_long_and_short_prompts_are_drawn_together_as_alone(engine: DiffusionEngine) -> None:
    orders = {1: request("a cat"), 2: request(LONG, seed=2), 3: request("a dog", seed=3, negative_prompt=LONG), 4: request("x" * 500)}
    alone = {number: draw_images(engine, {number: order})[number] for number, order in orders.items()}
    together = draw_images(engine, orders)
    assert max(max_pixel_difference(alone[number], together[number]) for number in orders) <= 1


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


@pytest.fixture
def records() -> Iterator[Records]:
    """What the libraries log, whatever their level."""
    handler, names = Records(), ("", "diffusers", "transformers")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    yield handler
    for name in names:
        logging.getLogger(name).removeHandler(handler)


def test_words_of_a_long_prompt_are_in_no_log(
    engine: DiffusionEngine, models: dict[str, Path], records: Records, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """vllm-project/vllm-omni #7527, bghira/SimpleTuner #760 and #1408: the library's warning quotes the end of a private prompt.

    The control is the stock pipeline at the library's usual level, which logs them.
    """
    import diffusers

    stock = StockPipeline(models["tiny-sd"])
    diffusers.logging.set_verbosity_warning()
    stock.pipeline.encode_prompt(LONG + SECRET, "cpu", 1, False)
    assert "patient" in records.text
    records.text = ""
    capfd.readouterr()
    diffusers.logging.set_verbosity_debug()  # as DIFFUSERS_VERBOSITY=debug sets it before the engine opens
    other = open_image_engine(models, tmp_path)
    draw(other, LONG + SECRET, negative_prompt=LONG + SECRET)
    refuse(other, LONG * 5 + SECRET)
    other.close()
    captured = capfd.readouterr()
    for text in (records.text, captured.out, captured.err):
        assert "patient" not in text.lower()
        assert "maria" not in text.lower()
