"""Prompts that are longer than the text encoder reads: the result, the PNG and the backend say how many tokens were left out, and no log
has the words that were.

The tiny model's tokens are bytes, and its limit is the real one: 77 with the two that mark begin and end.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.requests import DiffusionRequest, DiffusionResult
from actors.engines.process.executor import ExecutionResult
from actors.engines.process.protocol import Finished
from actors.image import build_result
from actors.webhooks.webhook_request import build_request
from contracts.image import Image, ImageDone
from contracts.webhook import Webhook
from ops.local.tiny_models import make_tiny_models
from tests.support.engine_fixture import StockPipeline, open_image_engine, run_to_end

pytestmark = [
    pytest.mark.models, pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

READ = 75
"""Tokens of a prompt that are read."""
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


def draw(engine: DiffusionEngine, prompt: str, **changes: Any) -> tuple[DiffusionResult, Pillow.Image]:
    engine.submit(1, DiffusionRequest(**{"prompt": prompt, "seed": 1, "width": 64, "height": 64, "steps": 2, **changes}))
    event = run_to_end(engine, [1])[1]
    assert isinstance(event, Finished), event
    picture = Pillow.open(event.output_files[0])
    picture.load()  # the next picture has the same file
    return event.result, picture


LENGTHS = {
    "nothing is left out": ("x" * READ, 0),
    "one token: AUTOMATIC1111/stable-diffusion-webui #2275": ("x" * (READ + 1), 1),
    "as long as a message allows: ml-explore/mlx-examples #1327": ("x" * 4000, 4000 - READ),
    "Korean letters are three tokens here: huggingface/diffusers #447": ("가" * 26, 3 * 26 - READ),
    "commas count: openvinotoolkit/stable-diffusion-webui #25": (" , ".join(["snow"] * 20), 99 - READ),
    "weights are text: haofanwang/Lora-for-Diffusers #6": ("(closed shirt:1.3), <offset:1>, " * 3, 87 - READ),
}


@pytest.mark.parametrize(("prompt", "left_out"), LENGTHS.values(), ids=LENGTHS)
def test_result_and_picture_say_how_many_tokens_were_left_out(engine: DiffusionEngine, prompt: str, left_out: int) -> None:
    result, picture = draw(engine, prompt)
    assert result.prompt_tokens_left_out == left_out
    assert picture.text.get("prompt_tokens_left_out") == (str(left_out) if left_out else None)  # type: ignore[attr-defined]
    assert result.png_metadata.get("prompt_tokens_left_out") == (str(left_out) if left_out else None)


def test_count_is_that_of_the_stock_pipeline(engine: DiffusionEngine, models: dict[str, Path]) -> None:
    """pharmapsychotic/clip-interrogator #65: what is counted as left out has no effect; what is not has one."""
    result, picture = draw(engine, LONG + SECRET)
    kept = (LONG + SECRET).replace(" ", "")  # a blank is no token of its own
    _, without = draw(engine, LONG)
    _, shortened = draw(engine, LONG[:60])
    assert picture.tobytes() == without.tobytes()
    assert picture.tobytes() != shortened.tobytes()
    assert result.prompt_tokens_left_out == len(kept) - READ


def test_negative_prompt_is_counted_on_its_own(engine: DiffusionEngine) -> None:
    """Negative prompts are often the longer ones: damian0815/compel #76."""
    result, picture = draw(engine, "a cat", negative_prompt="x" * 100)
    assert (result.prompt_tokens_left_out, result.negative_prompt_tokens_left_out) == (0, 100 - READ)
    assert picture.text["negative_prompt_tokens_left_out"] == str(100 - READ)  # type: ignore[attr-defined]
    assert "prompt_tokens_left_out" not in picture.text  # type: ignore[attr-defined]


def test_negative_prompt_that_is_not_used_is_not_counted(engine: DiffusionEngine) -> None:
    """Without guidance there is no negative half (huggingface/diffusers #447): nothing of it was read, so that nothing was cut."""
    assert draw(engine, "a cat", negative_prompt="x" * 100, guidance_scale=1.0)[0].negative_prompt_tokens_left_out == 0


def finished_order(engine: DiffusionEngine) -> ImageDone:
    request = DiffusionRequest("x" * 80, 1, width=64, height=64, steps=2, negative_prompt="x" * 90)
    result, _ = draw(engine, request.prompt, negative_prompt=request.negative_prompt)
    return build_result(Image(prompt=request.prompt, steps=2), request, ExecutionResult(result, [], 0.0, 0.0))


def test_event_and_webhook_say_it(engine: DiffusionEngine) -> None:
    """huggingface/diffusers #472: a caller could not know that its prompt was cut. Backends get it as they get `lora_missing`."""
    done = finished_order(engine)
    fields = {"prompt_tokens_left_out": 5, "negative_prompt_tokens_left_out": 15}
    assert fields.items() <= done.model_dump(mode="json", exclude_none=True).items()
    assert fields.items() <= done.made_with.items() | {(name, int(value)) for name, value in done.made_with.items() if name in fields}
    complete: dict[str, Any] = {"kind": "complete", "generation_id": 7, "result_url": "https://shop.example/1.png"}
    assert (
        b'"metadata":{"prompt_tokens_left_out":5,"negative_prompt_tokens_left_out":15}' in build_request(Webhook(**complete, **fields)).body
    )
    assert b"metadata" not in build_request(Webhook(**complete)).body


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


def test_words_that_were_left_out_are_in_no_log(
    engine: DiffusionEngine, models: dict[str, Path], records: Records, capfd: pytest.CaptureFixture[str]
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
    other = open_image_engine(models, engine.decoder.shm_dir)
    draw(other, LONG + SECRET, negative_prompt=LONG + SECRET)
    other.close()
    captured = capfd.readouterr()
    for text in (records.text, captured.out, captured.err):
        assert "patient" not in text.lower()
        assert "maria" not in text.lower()
