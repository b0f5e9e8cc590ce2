"""The diffusion engine compared with the stock pipeline: the same seed gives the same image, whatever else is in the batch."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.engines.diffusion.engine import DiffusionEngine, request_metadata
from actors.engines.diffusion.requests import (
    ControlSource,
    DiffusionRequest,
    DiffusionResult,
    EditSource,
    InputPicture,
    LoraFile,
    ResolvedRequest,
)
from actors.engines.diffusion.schedulers import SCHEDULERS
from actors.engines.process.protocol import Failed, Finished, Progressed, Started
from actors.imaging.png_metadata import GENERATION_KEYS
from bus.errors import PermanentError
from tests.support.engine_fixture import (
    StockPipeline,
    draw_images,
    loaded_pipeline,
    lora_file,
    max_pixel_difference,
    open_image_engine,
    output_images,
    run_tick,
    run_to_end,
)

# diffusers, transformers and peft issue warnings about themselves.
pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:peft"),
]  # fmt: skip

TinyModels = dict[str, Path]


def make_request(seed: int = 1, *, lora: LoraFile | None = None, **changes: Any) -> DiffusionRequest:
    fields = {"prompt": "a lighthouse 등대", "seed": seed, "width": 64, "height": 64, "steps": 8, "loras": (lora,) if lora else ()}
    return DiffusionRequest(**fields | changes)


def test_every_scheduler_in_one_batch_matches_stock_pipeline(
    image_engine: DiffusionEngine, stock_pipeline: StockPipeline, tiny_models: TinyModels
) -> None:
    loras = [None, lora_file(tiny_models, "a"), lora_file(tiny_models, "b", 0.5), lora_file(tiny_models, "c", 1.5)]
    requests = {
        number: make_request(
            number, scheduler=name, steps=6 + number, guidance_scale=3.0 + number, lora=loras[number % 4], negative_prompt="안개"
        )
        for number, name in enumerate(SCHEDULERS)
    }
    for number, drawn in draw_images(image_engine, requests).items():
        assert max_pixel_difference(drawn, stock_pipeline.draw(requests[number])) <= 1, requests[number]


def test_different_loras_yield_different_images(image_engine: DiffusionEngine, tiny_models: TinyModels) -> None:
    drawn = draw_images(
        image_engine,
        {
            1: make_request(),
            2: make_request(lora=lora_file(tiny_models, "a")),
            3: make_request(lora=lora_file(tiny_models, "a", 0.3)),
            4: make_request(2),
        },
    )
    assert min(max_pixel_difference(drawn[1], drawn[other]) for other in (2, 3, 4)) > 8


def test_without_guidance_images_match_stock_pipeline(image_engine: DiffusionEngine, stock_pipeline: StockPipeline) -> None:
    requests = {1: make_request(guidance_scale=1.0), 2: make_request(guidance_scale=0.0), 3: make_request()}
    for number, drawn in draw_images(image_engine, requests).items():
        assert max_pixel_difference(drawn, stock_pipeline.draw(requests[number])) <= 1


def test_each_image_of_an_order_has_its_own_seed(image_engine: DiffusionEngine, stock_pipeline: StockPipeline) -> None:
    drawn = draw_images(
        image_engine, {1: make_request(5, count=3), 2: make_request(7), 3: make_request(20, count=2, deterministic=True, width=128)}
    )
    assert max_pixel_difference(drawn[1], stock_pipeline.draw(make_request(5, count=3))) <= 1
    assert max_pixel_difference(drawn[1][2:], drawn[2]) <= 1
    assert max_pixel_difference(drawn[3], stock_pipeline.draw(make_request(20, count=2, width=128))) <= 1


@pytest.mark.parametrize("mix", range(3))
def test_any_mix_of_arrivals_options_and_cancels_matches_stock_pipeline(
    mix: int, image_engine: DiffusionEngine, stock_pipeline: StockPipeline, tiny_models: TinyModels
) -> None:
    rng = random.Random(mix)
    requests = {number: random_request(rng, number, tiny_models) for number in range(1, 9)}
    submit_ticks = {number: rng.randrange(0, 14) for number in requests}
    cancel_ticks = {number: submit_ticks[number] + rng.randrange(1, 5) for number in requests if rng.random() < 0.25}
    events: dict[int, Any] = {}
    for tick in range(40):
        for number in [number for number, due in submit_ticks.items() if due == tick]:
            image_engine.submit(number, requests[number])
        for number in [number for number, due in cancel_ticks.items() if due == tick and number not in events]:
            assert image_engine.cancel(number)
        events |= {event.request_id: event for event in run_tick(image_engine) if isinstance(event, Finished | Failed)}
    events |= run_to_end(image_engine, set(requests) - set(cancel_ticks) - set(events))
    for number in set(requests) - set(cancel_ticks):
        assert max_pixel_difference(output_images(events[number]), stock_pipeline.draw(requests[number])) <= 1, requests[number]


def test_double_precision_images_are_bit_identical(tiny_models: TinyModels, tmp_path: Path) -> None:
    """So the difference in FP32 is rounding, and no order affects another."""
    import torch

    engine, stock = open_image_engine(tiny_models, tmp_path / "double", max_rows=16), StockPipeline(tiny_models["tiny-sd"])
    loaded_pipeline(engine).to(dtype=torch.float64)
    stock.pipeline.to(dtype=torch.float64)
    rng = random.Random(99)
    requests = {number: random_request(rng, number, tiny_models) for number in range(1, 9)}
    for number, drawn in draw_images(engine, requests).items():
        assert max_pixel_difference(drawn, stock.draw(requests[number])) == 0, requests[number]
    engine.close()


def random_request(rng: random.Random, number: int, tiny: TinyModels) -> DiffusionRequest:
    name = rng.choice([None, "a", "b", "c"])
    return make_request(
        number, prompt=f"order {number}", steps=rng.randrange(2, 12), guidance_scale=rng.choice([1.0, 3.0, 7.5, 12.0]),
        width=rng.choice([64, 64, 96]), count=rng.choice([1, 1, 2]), scheduler=rng.choice(["dpm++", "euler", "euler-a", "ddim"]),
        lora=lora_file(tiny, name, rng.choice([0.5, 1.0])) if name else None, deterministic=rng.random() < 0.2,
    )  # fmt: skip


def test_order_joins_at_next_step_and_leaves_when_done(image_engine: DiffusionEngine) -> None:
    image_engine.submit(1, make_request(steps=30))
    started, begun, *_ = run_tick(image_engine)
    assert (started, begun) == (Started(1), Progressed(1, 0, 30)), "the total is known before the first step is made"
    for _ in range(4):
        run_tick(image_engine)
    image_engine.submit(2, make_request(2, steps=3))
    finished: list[int] = []
    steps = {1: 0, 2: 0}
    while len(finished) < 2:
        for event in run_tick(image_engine):
            if isinstance(event, Progressed):
                steps[event.request_id] = event.step
            if isinstance(event, Finished):
                finished.append(event.request_id)
                if event.request_id == 2:
                    assert steps[1] < 30, "the short order does not wait for the long one"
                    assert event.result.largest_batch == 2
    assert finished == [2, 1]


def test_deterministic_order_is_not_batched(image_engine: DiffusionEngine) -> None:
    image_engine.submit(1, make_request(deterministic=True, count=2))
    image_engine.submit(2, make_request(2))
    result: DiffusionResult = run_to_end(image_engine, [1, 2])[1].result  # type: ignore[union-attr]
    assert result.largest_batch == 1


def test_deterministic_order_is_bit_identical_alone_and_beside_others(image_engine: DiffusionEngine) -> None:
    request = make_request(3, deterministic=True, count=2)
    alone = draw_images(image_engine, {1: request})[1]
    beside_others = draw_images(image_engine, {number: request if number == 3 else make_request(number) for number in range(2, 6)})[3]
    assert max_pixel_difference(alone, beside_others) == 0


def test_images_of_two_threads_are_the_same_alone_and_beside_others(
    tiny_models: TinyModels, tmp_path: Path, torch_threads: Callable[[], int]
) -> None:
    engine = open_image_engine(tiny_models, tmp_path / "threads", threads=2)
    assert torch_threads() == 2
    requests = {number: make_request(number, steps=2, deterministic=number == 1) for number in range(1, 4)}
    alone = {number: draw_images(engine, {number: request})[number] for number, request in requests.items()}
    for number, together in draw_images(engine, requests).items():
        assert max_pixel_difference(together, alone[number]) <= (0 if requests[number].deterministic else 1), number
    assert max_pixel_difference(alone[1], alone[2]) > 1
    engine.close()


def test_cancel_removes_only_named_request(image_engine: DiffusionEngine) -> None:
    for number in (1, 2):
        image_engine.submit(number, make_request(number, steps=20))
    run_tick(image_engine)
    run_tick(image_engine)
    assert image_engine.cancel(1)
    assert not image_engine.cancel(1)
    assert not image_engine.cancel(99)
    assert {row.request_id for row in image_engine.groups.rows} == {2}
    assert set(run_to_end(image_engine, [2])) == {2}
    assert image_engine.idle_seconds() != 0


def test_orders_wait_for_free_lora_slot(tiny_models: TinyModels, tmp_path: Path, stock_pipeline: StockPipeline) -> None:
    engine = open_image_engine(tiny_models, tmp_path / "one-slot", lora_slots=1)
    requests = {number: make_request(number, lora=lora_file(tiny_models, name)) for number, name in enumerate("abca", start=1)}
    for number, drawn in draw_images(engine, requests).items():
        assert max_pixel_difference(drawn, stock_pipeline.draw(requests[number])) <= 1
    engine.close()


def test_repeated_lora_swaps_leak_no_memory(tiny_models: TinyModels, tmp_path: Path) -> None:
    """Two hundred swaps through two slots."""
    engine = open_image_engine(tiny_models, tmp_path / "soak", lora_slots=2)
    model = engine.models.default()
    for number in range(12):
        swap_lora(model, tiny_models, number)
    before, patched = psutil.Process().memory_info().rss, len(model.loras._patched_layers)
    for number in range(200):
        swap_lora(model, tiny_models, number)
    assert model.loras.loads >= 200
    assert len(model.loras._patched_layers) == patched
    assert len(model.loras) == len(model.loras._slots_by_adapter) == 2
    assert psutil.Process().memory_info().rss - before < 24 << 20
    engine.close()


def swap_lora(model: Any, tiny: TinyModels, number: int) -> None:
    lora = lora_file(tiny, "abc"[number % 3], scale=1.0 + number % 5)
    model.loras.acquire(lora)
    model.loras.release(lora)


def test_non_finite_lora_is_rejected_without_side_effects(
    image_engine: DiffusionEngine, tiny_models: TinyModels, tmp_path: Path, stock_pipeline: StockPipeline
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny_models["tiny-lora-a"])
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    image_engine.submit(1, make_request(lora=LoraFile(tmp_path / "nan.safetensors", "0" * 64, 1.0, "nan-lora")))
    event = run_to_end(image_engine, [1])[1]
    assert isinstance(event, Failed)
    assert (event.code, event.kind) == ("lora-invalid", "permanent")
    assert "nan-lora" in event.message
    assert max_pixel_difference(draw_images(image_engine, {2: make_request(2)})[2], stock_pipeline.draw(make_request(2))) <= 1


def test_peft_keys_are_accepted(image_engine: DiffusionEngine, tiny_models: TinyModels, tmp_path: Path) -> None:
    """PEFT writes `base_model.model.` before each key; the tensors are the same."""
    from actors.engines.diffusion.tiny_stable_diffusion import write_tiny_lora

    for key_format in ("peft", "diffusers"):
        write_tiny_lora(tmp_path / f"{key_format}.safetensors", tiny_models["tiny-sd"], seed=9, key_format=key_format)
    requests = {
        number: make_request(lora=LoraFile(tmp_path / f"{key_format}.safetensors", str(number) * 64, 1.0, key_format))
        for number, key_format in enumerate(("peft", "diffusers"), start=1)
    }
    drawn = draw_images(image_engine, requests)
    assert max_pixel_difference(drawn[1], drawn[2]) <= 1


def test_kohya_lora_matches_stock_pipeline(
    image_engine: DiffusionEngine, tiny_models: TinyModels, tmp_path: Path, stock_pipeline: StockPipeline
) -> None:
    """The most common key format; this LoRA also changes the text encoder and a convolution."""
    import torch
    from safetensors.torch import load_file, save_file

    unet = loaded_pipeline(image_engine).unet
    tensors = {}
    for name, tensor in load_file(tiny_models["tiny-lora-c"]).items():
        component, layer = name.split(".", 1)
        layer, matrix, _ = layer.rsplit(".", 2)
        kohya = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[component] + layer.replace(".", "_")
        tensors[f"{kohya}.{'lora_down' if matrix == 'lora_A' else 'lora_up'}.weight"] = tensor
        tensors[f"{kohya}.alpha"] = torch.tensor(2.0)
    weight = unet.mid_block.attentions[0].proj_in.weight
    assert weight.dim() == 4
    tensors["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"] = torch.randn(2, weight.shape[1], 1, 1)
    tensors["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"] = torch.randn(weight.shape[0], 2, 1, 1)
    tensors["lora_unet_mid_block_attentions_0_proj_in.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "kohya.safetensors")
    lora = LoraFile(tmp_path / "kohya.safetensors", "1" * 64, 0.8, "kohya")
    requests = {1: make_request(lora=lora), 2: make_request(2), 3: make_request(3, lora=lora_file(tiny_models, "a"))}
    for number, drawn in draw_images(image_engine, requests).items():
        assert max_pixel_difference(drawn, stock_pipeline.draw(requests[number])) <= 1, requests[number]


@pytest.mark.parametrize("projections", ["q", "kv", "qkv"])
def test_kohya_lora_without_output_projection_is_drawn(
    projections: str, image_engine: DiffusionEngine, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """Of the text encoder. It is as strong as the same LoRA under PEFT's names."""
    import torch
    from safetensors.torch import save_file

    encoder = loaded_pipeline(image_engine).text_encoder
    names = [name for name, _ in encoder.named_modules() if name.endswith(tuple(f"{projection}_proj" for projection in projections))]
    assert names
    kohya, peft = {}, {}
    for name in names:
        layer, weight = name.removeprefix("text_model."), encoder.get_submodule(name).weight
        halves = {"down": torch.randn(2, weight.shape[1]), "up": torch.randn(weight.shape[0], 2)}
        for half, matrix in (("down", "A"), ("up", "B")):
            kohya[f"lora_te_text_model_{layer.replace('.', '_')}.lora_{half}.weight"] = halves[half]
            peft[f"text_encoder.text_model.{layer}.lora_{matrix}.weight"] = halves[half]
        kohya[f"lora_te_text_model_{layer.replace('.', '_')}.alpha"] = torch.tensor(2.0)
    requests = {3: make_request(3)}
    for number, tensors in enumerate((kohya, peft), start=1):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        requests[number] = make_request(3, lora=LoraFile(tmp_path / f"{number}.safetensors", str(number) * 64, 1.0, str(number)))
    drawn = draw_images(image_engine, requests)
    assert max_pixel_difference(drawn[1], drawn[2]) <= 1
    assert max_pixel_difference(drawn[1], drawn[3]) > 1


def test_every_key_of_a_drawn_picture_is_one_of_generation(image_engine: DiffusionEngine, tiny_models: TinyModels) -> None:
    """A new key of the engine must be added to GENERATION_KEYS, or a user's picture could carry it."""
    picture = InputPicture("RGB", 64, 64, bytes(64 * 64 * 3))
    image_engine.submit(1, make_request(edit=EditSource(picture), loras=(lora_file(tiny_models, "a"),)))
    event = run_to_end(image_engine, [1])[1]
    assert isinstance(event, Finished)
    controlled = ResolvedRequest("a cat", 1, control=ControlSource(picture, "edges"), true_cfg_scale=2.0)
    written = event.result.metadata.keys() | request_metadata(controlled).keys() | {"seed"}  # each picture has a seed of its own
    assert written == GENERATION_KEYS


def test_non_finite_latents_fail_the_order(image_engine: DiffusionEngine) -> None:
    pipeline = loaded_pipeline(image_engine)
    image_engine.submit(1, make_request(guidance_scale=float("inf")))
    event = run_to_end(image_engine, [1])[1]
    assert isinstance(event, Failed)
    assert event.code == "picture-not-finite"
    assert pipeline is loaded_pipeline(image_engine)


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"scheduler": "magic"}, "scheduler-unsupported"), ({"model": "x"}, "model-unknown"), ({"width": 65}, "size-unsupported")],
)
def test_invalid_request_is_rejected_at_submit(image_engine: DiffusionEngine, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(PermanentError) as caught:
        image_engine.submit(1, make_request(**changes))
    assert caught.value.code == code
    assert image_engine.idle_seconds() != 0


def test_models_over_memory_budget_are_swapped(tiny_models: TinyModels, tmp_path: Path, stock_pipeline: StockPipeline) -> None:
    from actors.engines.diffusion.tiny_stable_diffusion import write_tiny_diffusion

    write_tiny_diffusion(tmp_path / "other", seed=5)
    engine = open_image_engine(
        tiny_models, tmp_path / "two", models={"other": str(tmp_path / "other")}, memory_budget_bytes=400_000, pinned=False
    )
    drawn = draw_images(engine, {1: make_request(steps=12), 2: make_request(model="other"), 3: make_request(2)})
    assert max_pixel_difference(drawn[1], stock_pipeline.draw(make_request(steps=12))) <= 1
    assert max_pixel_difference(drawn[2], StockPipeline(tmp_path / "other").draw(make_request())) <= 1
    assert engine.models.cache.loads == 2, "the third order joins the first, so that the first model is not loaded again"
    assert engine.models.cache.names == [str(tmp_path / "other")]
    engine.close()


@pytest.mark.parametrize("warm", [True, False])
def test_model_is_loaded_at_start_or_on_first_order(tiny_models: TinyModels, tmp_path: Path, warm: bool) -> None:
    engine = open_image_engine(tiny_models, tmp_path / "warm", warm=warm)
    assert engine.models.cache.loads == int(warm)
    draw_images(engine, {1: make_request(), 2: make_request(2)})
    assert engine.models.cache.loads == 1
    engine.close()


def test_preview_is_a_jpeg(tiny_models: TinyModels, tmp_path: Path) -> None:
    engine = open_image_engine(tiny_models, tmp_path / "preview", preview_seconds=1e-6)
    engine.submit(1, make_request(preview=True))
    events = [event for _ in range(9) for event in run_tick(engine)]
    previews = [event.preview for event in events if isinstance(event, Progressed) and event.preview]
    assert previews
    assert previews[0].startswith(b"\xff\xd8")
    engine.close()


def test_without_previews_none_is_prepared_and_none_is_sent(tiny_models: TinyModels, tmp_path: Path) -> None:
    engine = open_image_engine(tiny_models, tmp_path / "no-preview", preview_seconds=0)
    engine.submit(1, make_request(preview=True))
    events = [event for _ in range(9) for event in run_tick(engine)]
    assert engine.models.default().preview is None
    assert [event.preview for event in events if isinstance(event, Progressed) and event.preview] == []
    assert [event for event in events if isinstance(event, Progressed)]
    engine.close()
