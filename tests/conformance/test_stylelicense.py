"""The promises of the StyleLicense inference server, in the order of its document.

One worker process serves all orders of the module; it is started with the commands of docs/migration.md. The broker, the database, the
bucket and the backend are real programs, the model is a tiny Stable Diffusion with random weights.
"""

import asyncio
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from PIL import ImageChops

from actors.engines.diffusion.families.stable_diffusion import StableDiffusion
from actors.engines.diffusion.oom import OomFallbacks
from actors.engines.diffusion.tiny_stable_diffusion import write_tiny_diffusion, write_tiny_lora
from actors.engines.process.gpu import choose_device
from actors.engines.settings import ImageSettings
from actors.image import build_actor
from actors.imaging.fonts import load_fonts
from actors.imaging.text_runs import split_into_runs
from ops.cli import main, parser
from ops.docgen.settings_catalog import all_settings, settings_classes
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.registry import load_actors
from tests.support.gpu import missing_gpu
from tests.support.promises import not_tried
from tests.support.stylelicense import RED, Recorded, id_of, migration_commands, record_orders

pytestmark = [pytest.mark.models, pytest.mark.timeout(420)]
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def recorded(rabbitmq: RabbitNode, postgres: EmbeddedPostgres, s3_endpoint: str) -> Iterator[Recorded]:
    """What the backend saw of all orders."""
    with TemporaryDirectory(prefix="atelier-stylelicense-") as folder:
        models = {"tiny-sd": Path(folder) / "tiny-sd", "tiny-lora-a": Path(folder) / "lora.safetensors"}
        models["tiny-adapter"] = Path(folder) / "adapter.safetensors"
        write_tiny_diffusion(models["tiny-sd"])
        write_tiny_lora(models["tiny-lora-a"], model=models["tiny-sd"], seed=1)
        write_tiny_lora(models["tiny-adapter"], model=models["tiny-sd"], seed=1, rank=4, key_format="peft")
        yield asyncio.run(record_orders(rabbitmq.url, postgres.url, s3_endpoint, models, Path(folder) / "cache"))


def difference_box(recorded: Recorded, one: str, other: str) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the pixels that differ by more than the rounding of another batch."""
    return ImageChops.difference(recorded.pixels(one), recorded.pixels(other)).point(lambda level: 255 if level > 2 else 0).getbbox()


@pytest.mark.promise("Overview", "orders come from the queue `image_generation`, durable and without arguments, by its default exchange")
@pytest.mark.promise("Overview", "the `complete` webhook is sent once for an order, and `failed` once for one that fails")
def test_orders_are_consumed_and_reported(recorded: Recorded) -> None:
    """The order that was published twice is done once."""
    ends = [(call.body["generation_id"], call.path.rpartition("/")[2]) for call in recorded.calls if "/progress" not in call.path]
    assert len(ends) == len(set(ends)) == 10
    assert (id_of("plain"), "complete") in ends
    assert (id_of("invalid"), "failed") in ends


@pytest.mark.promise("Overview", "the artist's LoRA weights are applied to the order that names them, and to no other")
def test_lora_changes_the_picture_of_its_order(recorded: Recorded) -> None:
    assert difference_box(recorded, "plain", "styled")
    assert difference_box(recorded, "styled", "other-bucket") is None
    assert not {"lora_missing", "signature_missing"} & set(recorded.complete("styled")["metadata"])


@pytest.mark.promise("Image Generation Pipeline", "a trained adapter is applied at its strength: alpha by rank, from the file beside it")
def test_adapter_is_applied_at_its_trained_strength(recorded: Recorded) -> None:
    """Alpha 16 and rank 4."""
    picture: Any = recorded.picture("adapter")
    assert (float(picture.text["lora_scaling"]), picture.text["lora_alpha_from"]) == (4.0, "adapter_config")
    assert difference_box(recorded, "styled", "adapter")


@pytest.mark.promise("Overview", "up to ten orders are generated at once")
@pytest.mark.promise("Environment Variables", "`MAX_CONCURRENT_GENERATIONS=10` limits the orders in progress")
@pytest.mark.promise("Production Checklist", "the number of concurrent generations is a setting")
def test_ten_orders_at_once_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (build_actor().prefetch, ImageSettings().max_rows) == (10, 10)
    monkeypatch.setenv("MAX_CONCURRENT_GENERATIONS", "3")
    assert build_actor().prefetch == 3


@pytest.mark.promise("Tech Stack", "Python 3.11 or newer")
@pytest.mark.promise("Tech Stack", "PyTorch 2.1 and Diffusers .25 or newer load Stable Diffusion checkpoints")
@pytest.mark.promise("Tech Stack", "Pillow 10.1 or newer draws the watermark")
def test_versions_are_not_older() -> None:
    lowest = {"torch": (2, 1), "diffusers": (0, 25), "pillow": (10, 1)}
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    for package, version in lowest.items():
        assert tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2]) >= version, package


@pytest.mark.promise("Tech Stack", "RabbitMQ through pika", differs="through FastStream and aio-pika, on the same protocol and queue")
@pytest.mark.promise("Tech Stack", "S3 through boto3", differs="through aioboto3, the same SDK without blocking")
@pytest.mark.promise("Tech Stack", "webhooks through requests", differs="through httpx, with the same bodies and headers")
@pytest.mark.promise("Tech Stack", "black and pylint", differs="ruff formats and lints, mypy checks the types: `make check`")
def test_libraries_that_took_their_place() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    named = " ".join([*PROJECT["project"]["dependencies"], *extras["s3"], *extras["dev"]])
    assert all(re.search(rf"\b{package}\b", named) for package in ("faststream", "aio-pika", "aioboto3", "httpx", "ruff", "mypy"))


@pytest.mark.promise(
    "Image Generation Pipeline", "LoRA weights and signatures are fetched from the bucket, or from another that is allowed"
)
def test_weights_come_from_documented_buckets(recorded: Recorded) -> None:
    assert recorded.environment["ASSET_BUCKETS"] == "stylelicense-models"
    assert "lora_missing" not in recorded.complete("other-bucket")["metadata"]
    assert (recorded.dead_letters["image"], recorded.dead_letters["watermark"]) == ([], [])


@pytest.mark.promise("Image Generation Pipeline", "an order whose LoRA file is missing is drawn by the base model")
@pytest.mark.promise("Image Generation Pipeline", "an order whose signature file is missing stays unsigned")
def test_missing_files_are_left_out_and_reported(recorded: Recorded) -> None:
    """The picture is that of the order without them; the webhook's metadata and the log name what is missing."""
    assert difference_box(recorded, "plain", "missing") is None
    metadata = recorded.complete("missing")["metadata"]
    assert (metadata["lora_missing"], metadata["signature_missing"]) == (True, True)
    assert recorded.log_entries("signature.skipped")


@pytest.mark.promise(
    "Image Generation Pipeline", "the signature's position, size and opacity come from the order; opacity also as 0 to 255"
)
@pytest.mark.promise("Image Generation Pipeline", "position, size and opacity are fixed for what an order does not say")
def test_signature_is_composed_as_the_order_says(recorded: Recorded) -> None:
    """Large: .35 of the width. 128 of 255: half of the red and half of what was there."""
    left, top, right, bottom = difference_box(recorded, "plain", "signed") or (0, 0, 0, 0)
    assert (left, top) == (pytest.approx(10, abs=2), pytest.approx(10, abs=2))
    assert (right - left, bottom - top) == (pytest.approx(0.35 * 512, abs=2), pytest.approx(0.35 * 256, abs=2))
    middle = (left + right) // 2, (top + bottom) // 2
    before, after = (recorded.pixels(name).getpixel(middle) for name in ("plain", "signed"))
    assert after == pytest.approx(tuple(round((old + new) / 2) for old, new in zip(before, RED, strict=True)), abs=2)  # type: ignore[arg-type]


@pytest.mark.promise("Data Flow", "progress is a PATCH to `…/inference/progress`, with step, total, percent and estimated seconds")
@pytest.mark.promise("Data Flow", "progress is sent at 0, 25, 50, 75 and 90 percent", differs="not after a later call has begun")
def test_progress_webhooks(recorded: Recorded) -> None:
    """Of fifty steps, at the first step at or after. Calls run side by side: the log names one that a later one has overtaken."""
    calls = recorded.calls_of("documented", "/progress")
    assert {(call.method, call.path) for call in calls} == {("PATCH", "/api/webhooks/inference/progress")}
    percents = [call.body["progress"]["progress_percent"] for call in calls]
    assert percents == sorted(set(percents))
    assert set(percents) <= {0, 26, 50, 76, 90}
    skipped = [entry for entry in recorded.log_entries("webhook.skipped") if entry["job_id"] == f"generation-{id_of('documented')}"]
    assert len(percents) + len(skipped) == 5
    fields = {"current_step", "total_steps", "progress_percent", "estimated_seconds"}
    assert all(set(call.body["progress"]) == fields and call.body["progress"]["total_steps"] == 50 for call in calls)


@pytest.mark.promise("Data Flow", "the artist's signature is put in without being asked for, as a text where there is no picture")
def test_artist_name_is_drawn_and_recorded(recorded: Recorded) -> None:
    picture: Any = recorded.picture("flat")
    assert picture.text["artist"] == "김작가"
    left, top, right, bottom = 384, 440, 512, 512  # the name is drawn in the corner at the bottom right
    corner = recorded.pixels("flat").crop((left, top, right, bottom))
    assert len(corner.getcolors(1 << 20) or []) > 1


@pytest.mark.promise("Data Flow", "the picture is uploaded as PNG, before the `complete` webhook names it")
@pytest.mark.promise("Data Flow", "the address in `result_url` stays valid: the backend hands it to its users")
@pytest.mark.promise("Production Checklist", "generated pictures are in a public bucket")
def test_result_url_is_a_lasting_address_of_a_png(recorded: Recorded) -> None:
    """It is read without credentials, and has no query in which a signature would expire."""
    assert recorded.picture("plain").format == "PNG"
    url = recorded.complete("plain")["result_url"]
    assert url == f"{recorded.environment['AWS_S3_ENDPOINT_URL']}/stylelicense-media/generations/gen-{id_of('plain')}.png"
    assert recorded.log_entries("upload.links_expire") == []


@pytest.mark.promise("Data Flow", "`complete` is a POST with `result_url`, and `metadata` of seed, steps, guidance scale and tags")
@pytest.mark.promise("Generation parameters", "fifty steps and a guidance scale of 7.5, unless the order says otherwise")
def test_complete_webhook(recorded: Recorded) -> None:
    (call,) = recorded.calls_of("flat", "/complete")
    assert (call.method, call.path, set(call.body)) == (
        "POST",
        "/api/webhooks/inference/complete",
        {"generation_id", "result_url", "metadata"},
    )
    expected = {"seed": 42, "steps": 50, "guidance_scale": 7.5, "prompt_tags": ["harbour", "dusk"]}
    assert call.body["metadata"] == expected


@pytest.mark.promise("Data Flow", "`failed` names a code and a message")
@pytest.mark.promise("Data Flow", "a failing try sends `failed`", differs="`failed` is sent once, at the end: each one is a refund")
def test_failed_webhook(recorded: Recorded) -> None:
    (call,) = recorded.calls_of("invalid")
    assert (call.method, call.path) == ("POST", "/api/webhooks/inference/failed")
    assert (call.body["error_code"], call.body["retry_count"]) == ("UNKNOWN_SIZE", 3)
    assert "3:1" in call.body["error_message"]


@pytest.mark.promise("Message formats", "the three published forms of an order are read")
@pytest.mark.promise("Message formats", "a message of another type is acknowledged, and nothing is sent for it")
@pytest.mark.promise("Message formats", "a failed or unreadable message is discarded", differs="it is a dead letter that can be replayed")
def test_foreign_messages(recorded: Recorded) -> None:
    assert [recorded.complete(name)["generation_id"] for name in ("plain", "flat", "documented")]
    assert recorded.calls_of("training") == []
    assert [entry["reason"] for entry in recorded.log_entries("message.ignored")] == [
        "type is 'model_training'; this queue accepts 'image_generation'"
    ]
    assert b"{nope" in recorded.dead_letters["image_generation"]
    assert len(recorded.dead_letters["image_generation"]) == 2


@pytest.mark.promise("Generation parameters", "Stable Diffusion v1.5 is the base model")
@pytest.mark.promise("Generation parameters", "the scheduler is DPM-Solver++")
@pytest.mark.promise("Generation parameters", "pictures have 512 x 512 pixels; the aspect ratio `1:2` has 512 x 1024")
def test_default_parameters(recorded: Recorded) -> None:
    assert ImageSettings().model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert StableDiffusion.defaults.scheduler == "dpm++"
    assert [recorded.picture(name).size for name in ("flat", "plain", "tall")] == [(512, 512), (512, 512), (512, 1024)]


@pytest.mark.promise("Generation parameters", "one to four pictures at once")
def test_four_pictures_of_one_order(recorded: Recorded) -> None:
    assert len(set(recorded.complete("documented")["result_urls"])) == 4


@pytest.mark.gpu
@pytest.mark.promise("Prerequisites", "a CUDA device is found and used")
@pytest.mark.promise("Troubleshooting", "whether CUDA is available can be asked")
def test_cuda_is_chosen() -> None:
    assert (missing_gpu(), choose_device("auto")) == (None, "cuda:0")


MEMORY_OF_REAL_WEIGHTS = not_tried(
    "needs a GPU with the real Stable Diffusion weights",
    ("Prerequisites", "6 GB of GPU memory suffice"),
    ("Production Checklist", "ten generations at once stay within 24 GB of GPU memory"),
)


@pytest.mark.promise("Installation", "`.env.example` is copied to `.env`, which is read at the start")
def test_env_file_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text() + "\nINTERNAL_API_TOKEN=too-short\n")
    command = [sys.executable, "-m", "ops.cli", "run", "webhook", "image_generation"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "INTERNAL_API_TOKEN: it has 9 characters" in done.stderr) == (1, True)


@pytest.mark.promise(
    "Installation",
    "`python main.py` starts the worker",
    differs="`atelier run` starts the steps that it names, in one process or in several",
)
@pytest.mark.promise("Environment Variables", "the broker by `RABBITMQ_HOST`, `RABBITMQ_PORT`, `RABBITMQ_USER` and `RABBITMQ_PASS`")
@pytest.mark.promise("Environment Variables", "the bucket by `AWS_STORAGE_BUCKET_NAME`, region and access key")
@pytest.mark.promise("Running in production", "the variables alone configure the worker")
def test_documented_environment_starts_the_worker(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is on the page: its settings are valid, its steps load, and each of its variables is known."""
    variables, command = migration_commands()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    known = {name for setting in all_settings() for name in setting.names}
    assert set(variables) - known == set()
    assert [cls.__name__ for cls in settings_classes() if cls.__name__ in {"BusSettings", "StoreSettings"} and cls()] != []
    components = load_actors(parser().parse_args(command[1:]).steps)
    assert (len(components.actors), len(components.adapters)) == (4, 1)
    assert recorded.exit_code == 0
    assert recorded.ready["ready"], recorded.ready


@pytest.mark.promise("Environment Variables", "`BACKEND_API_URL` receives the webhooks, with `INTERNAL_API_TOKEN` as the bearer token")
def test_webhook_headers(recorded: Recorded) -> None:
    expected = {"authorization": f"Bearer {recorded.environment['INTERNAL_API_TOKEN']}", "x-request-source": "inference-server"}
    for call in recorded.calls:
        assert {name: call.headers[name] for name in expected} == expected
        assert call.headers["content-type"] == "application/json"
    assert recorded.environment["INTERNAL_API_TOKEN"] not in recorded.log


@pytest.mark.promise("Environment Variables", "`INTERNAL_API_TOKEN` has at least 32 characters")
def test_short_token_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("bus.observability.logs.configure_logging", lambda: None)  # it would keep the captured standard error
    monkeypatch.setenv("INTERNAL_API_TOKEN", "x" * 31)
    assert main(["run", "image_generation"]) == 1
    error = capsys.readouterr().err
    assert "at least 32 are needed" in error
    assert "x" * 31 not in error


@pytest.mark.gpu
@pytest.mark.promise("Environment Variables", "`CUDA_VISIBLE_DEVICES` selects the GPU")
def test_visible_devices() -> None:
    program = "import torch; print(torch.cuda.device_count())"
    counts = [
        subprocess.run(
            [sys.executable, "-c", program], env={"CUDA_VISIBLE_DEVICES": visible, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
        )
        for visible in ("0", "")
    ]
    assert [int(count.stdout) for count in counts] == [1, 0]


@pytest.mark.promise("Environment Variables", "`LOG_LEVEL=INFO` sets the level of the log")
@pytest.mark.promise("Production Checklist", "the log goes to the console, from where it is collected", differs="as lines of JSON")
def test_log_level_and_form(recorded: Recorded) -> None:
    assert recorded.log_entries("job.accepted")
    assert {entry["level"] for entry in recorded.log_entries("job.accepted")} == {"info"}


@pytest.mark.promise("Running Tests", "`pytest --cov` reports the coverage")
@pytest.mark.promise("Running Tests", '`pytest -m "not gpu"` leaves out the tests that need a GPU')
@pytest.mark.promise("Test Types", "unit, integration and GPU tests, with shared fixtures in tests/conftest.py")
def test_pytest_with_coverage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu"]
    command += ["--cov=contracts", f"--cov-report=html:{tmp_path / 'report'}", "tests/unit/contracts/test_broker_names.py", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(tmp_path), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deselected" in done.stdout
    assert (tmp_path / "report/index.html").exists()
    assert all((ROOT / "tests" / folder).is_dir() for folder in ("unit", "integration", "gpu"))


def clean_environment(folder: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(folder), "COVERAGE_FILE": str(folder / "coverage"), "PYTHONPATH": str(ROOT)}


COVERAGE_GOAL = not_tried(
    "needs a run of all tests; `pytest --cov` measures it", ("Test Types", "at least 70 percent of the code is covered")
)


IMAGE_WITH_GPU = not_tried(
    "needs a container engine with a GPU; tests/compose runs the images without one",
    ("Running in production", "`docker run --gpus all` starts the image with its variables"),
    ("Production Checklist", "the image contains CUDA 11.8 or newer"),
)


@pytest.mark.promise("Production Checklist", "the fonts of the watermark are part of the product")
@pytest.mark.promise("Troubleshooting", "a missing font is installed by hand", differs="fonts of many scripts are bundled")
def test_fonts_are_bundled() -> None:
    assert [run.text for run in split_into_runs("김작가 Jane", load_fonts(()))] == ["김작가 Jane"]


@pytest.mark.promise("Production Checklist", "a model is loaded once and kept")
def test_model_is_loaded_once(recorded: Recorded) -> None:
    assert metric(recorded, "atelier_engine_model_loads_total") == {'step="image"': 1.0}


def metric(recorded: Recorded, name: str) -> dict[str, float]:
    """The values of a metric by its labels."""
    lines = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", recorded.metrics, re.MULTILINE)
    return {labels: float(value) for labels, value in lines}


@pytest.mark.promise("Metrics to Monitor", "the time of a generation")
@pytest.mark.promise("Metrics to Monitor", "the ratio of successful and failed generations")
@pytest.mark.promise("Metrics to Monitor", "denoising steps per second")
def test_metrics_of_generations(recorded: Recorded) -> None:
    deliveries = metric(recorded, "atelier_deliveries_total")
    assert deliveries['code="",outcome="done",step="image"'] == 10, "nine orders, one of them delivered twice"
    assert deliveries['code="unknown-size",outcome="dead",step="image_generation"'] == 1
    assert metric(recorded, "atelier_step_seconds_sum")['step="image"'] > 0
    assert 'step="image"' in metric(recorded, "atelier_engine_steps_per_second")


@pytest.mark.promise("Metrics to Monitor", "the length of the queue")
def test_metric_of_queue_length(recorded: Recorded) -> None:
    """One gauge for each queue that the process consumes; all messages are done."""
    queues = {'queue="image_generation"', *(f'queue="atelier.{step}"' for step in ("image", "watermark", "upload", "webhook"))}
    assert metric(recorded, "atelier_queue_messages") == dict.fromkeys(queues, 0.0)


@pytest.mark.gpu
@pytest.mark.promise("Metrics to Monitor", "GPU memory in use and GPU utilization")
def test_metrics_of_gpu(recorded: Recorded) -> None:
    assert metric(recorded, "atelier_engine_device_memory_used_bytes")
    assert metric(recorded, "atelier_engine_device_busy_share")


@pytest.mark.promise("Troubleshooting", "slow generation: a fast scheduler is the default, and models stay loaded")
@pytest.mark.promise(
    "Troubleshooting", "out of memory: attention slicing and smaller batches", differs="applied by the engine itself when memory runs out"
)
def test_smaller_batch_when_memory_runs_out() -> None:
    fallbacks = OomFallbacks(max_rows=8)

    def draw() -> int:
        if fallbacks.row_limit > 2:
            raise MemoryError
        return fallbacks.row_limit

    assert fallbacks.run_with_fallbacks(draw, lambda: fallbacks.halve_batch(8)) == 2
    assert dict(fallbacks.applied_counts) == {"batch-4": 1, "batch-2": 1}
    assert (StableDiffusion.defaults.scheduler, ImageSettings().pinned) == ("dpm++", True)
