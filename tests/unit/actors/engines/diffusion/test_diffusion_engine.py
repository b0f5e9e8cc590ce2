"""The image engine beside the stock pipeline: the same seed gives the same picture, whoever else is at work."""

import random
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.requests import DiffusionRequest, DiffusionResult, LoraFile
from actors.engines.diffusion.schedulers import SCHEDULERS
from actors.engines.process.protocol import Failed, Finished, MemoryExhausted, Progressed
from bus.errors import PermanentError
from tests.support.engine_fixture import (
    StockPipeline,
    draw_images,
    lora_file,
    max_pixel_difference,
    open_image_engine,
    output_images,
    run_tick,
    run_to_end,
)

# The libraries below warn of their own future.
pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:peft"),
]  # fmt: skip

TinyModels = dict[str, Path]


def make_request(seed: int = 1, **changes: Any) -> DiffusionRequest:
    return DiffusionRequest(**{"prompt": "a lighthouse 등대", "seed": seed, "width": 64, "height": 64, "steps": 8, **changes})


def test_every_scheduler_draws_what_the_stock_pipeline_draws_though_all_share_their_steps(
    image_engine: DiffusionEngine, stock_pipeline: StockPipeline, tiny_models: TinyModels
) -> None:
    loras = [None, lora_file(tiny_models, "a"), lora_file(tiny_models, "b", 0.5), lora_file(tiny_models, "c", 1.5)]
    works = {
        number: make_request(
            number, scheduler=name, steps=6 + number, guidance_scale=3.0 + number, lora=loras[number % 4], negative_prompt="안개"
        )
        for number, name in enumerate(SCHEDULERS)
    }
    for number, drawn in draw_images(image_engine, works).items():
        assert max_pixel_difference(drawn, stock_pipeline.draw(works[number])) <= 1, works[number]


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


def test_without_guidance_there_is_no_unconditional_half(image_engine: DiffusionEngine, stock_pipeline: StockPipeline) -> None:
    works = {1: make_request(guidance_scale=1.0), 2: make_request(guidance_scale=0.0), 3: make_request()}
    for number, drawn in draw_images(image_engine, works).items():
        assert max_pixel_difference(drawn, stock_pipeline.draw(works[number])) <= 1


def test_pictures_of_one_order_have_seeds_of_their_own(image_engine: DiffusionEngine, stock_pipeline: StockPipeline) -> None:
    drawn = draw_images(
        image_engine, {1: make_request(5, count=3), 2: make_request(7), 3: make_request(20, count=2, deterministic=True, width=128)}
    )
    assert max_pixel_difference(drawn[1], stock_pipeline.draw(make_request(5, count=3))) <= 1
    assert max_pixel_difference(drawn[1][2:], drawn[2]) <= 1
    assert max_pixel_difference(drawn[3], stock_pipeline.draw(make_request(20, count=2, width=128))) <= 1


@pytest.mark.parametrize("mix", range(3))
def test_any_mix_of_arrival_steps_guidance_lora_and_cancel_gives_each_its_own_picture(
    mix: int, image_engine: DiffusionEngine, stock_pipeline: StockPipeline, tiny_models: TinyModels
) -> None:
    dice = random.Random(mix)
    works = {number: random_request(dice, number, tiny_models) for number in range(1, 9)}
    arrivals = {number: dice.randrange(0, 14) for number in works}
    cancelled = {number: arrivals[number] + dice.randrange(1, 5) for number in works if dice.random() < 0.25}
    ends: dict[int, Any] = {}
    for tick in range(40):
        for number in [number for number, at in arrivals.items() if at == tick]:
            image_engine.submit(number, works[number])
        for number in [number for number, at in cancelled.items() if at == tick and number not in ends]:
            assert image_engine.cancel(number)
        ends |= {event.request_id: event for event in run_tick(image_engine) if isinstance(event, Finished | Failed)}
    ends |= run_to_end(image_engine, set(works) - set(cancelled) - set(ends))
    for number in set(works) - set(cancelled):
        assert max_pixel_difference(output_images(ends[number]), stock_pipeline.draw(works[number])) <= 1, works[number]


def test_double_precision_images_are_bit_identical(tiny_models: TinyModels, tmp_path: Path) -> None:
    """So what differs in FP32 is rounding, and nothing of one order leaks into another."""
    import torch

    engine, stock = open_image_engine(tiny_models, tmp_path / "double", max_rows=16), StockPipeline(tiny_models["tiny-sd"])
    engine.models.get(engine.settings.model).pipeline.to(dtype=torch.float64)
    stock.pipeline.to(dtype=torch.float64)
    dice = random.Random(99)
    works = {number: random_request(dice, number, tiny_models) for number in range(1, 9)}
    for number, drawn in draw_images(engine, works).items():
        assert max_pixel_difference(drawn, stock.draw(works[number])) == 0, works[number]
    engine.close()


def random_request(rng: random.Random, number: int, tiny: TinyModels) -> DiffusionRequest:
    name = rng.choice([None, "a", "b", "c"])
    return make_request(
        number, prompt=f"order {number}", steps=rng.randrange(2, 12), guidance_scale=rng.choice([1.0, 3.0, 7.5, 12.0]),
        width=rng.choice([64, 64, 96]), count=rng.choice([1, 1, 2]), scheduler=rng.choice(["dpm++", "euler", "euler-a", "ddim"]),
        lora=lora_file(tiny, name, rng.choice([0.5, 1.0])) if name else None, deterministic=rng.random() < 0.2,
    )  # fmt: skip


def test_an_order_joins_at_the_next_step_and_leaves_when_it_is_done(image_engine: DiffusionEngine) -> None:
    image_engine.submit(1, make_request(steps=30))
    for _ in range(5):
        run_tick(image_engine)
    image_engine.submit(2, make_request(2, steps=3))
    ends: list[int] = []
    seen = {1: 0, 2: 0}
    while len(ends) < 2:
        for event in run_tick(image_engine):
            if isinstance(event, Progressed):
                seen[event.request_id] = event.step
            if isinstance(event, Finished):
                ends.append(event.request_id)
                if event.request_id == 2:
                    assert seen[1] < 30, "the short order did not wait for the long one"
                    assert event.result.largest_batch == 2
    assert ends == [2, 1]


def test_deterministic_order_is_not_batched(image_engine: DiffusionEngine) -> None:
    image_engine.submit(1, make_request(deterministic=True, count=2))
    image_engine.submit(2, make_request(2))
    made: DiffusionResult = run_to_end(image_engine, [1, 2])[1].result  # type: ignore[union-attr]
    assert made.largest_batch == 1


def test_a_deterministic_order_is_the_same_to_the_last_bit_alone_and_beside_others(image_engine: DiffusionEngine) -> None:
    order = make_request(3, deterministic=True, count=2)
    alone = draw_images(image_engine, {1: order})[1]
    beside = draw_images(image_engine, {number: order if number == 3 else make_request(number) for number in range(2, 6)})[3]
    assert max_pixel_difference(alone, beside) == 0


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
    works = {number: make_request(number, lora=lora_file(tiny_models, name)) for number, name in enumerate("abca", start=1)}
    for number, drawn in draw_images(engine, works).items():
        assert max_pixel_difference(drawn, stock_pipeline.draw(works[number])) <= 1
    engine.close()


def test_repeated_lora_swaps_leak_no_memory(tiny_models: TinyModels, tmp_path: Path) -> None:
    """Two hundred swaps through two slots."""
    engine = open_image_engine(tiny_models, tmp_path / "soak", lora_slots=2)
    model = engine.models.get(engine.settings.model)
    for number in range(12):
        swap_lora(model, tiny_models, number)
    before, taught = psutil.Process().memory_info().rss, len(model.loras._patched_layers)
    for number in range(200):
        swap_lora(model, tiny_models, number)
    assert model.loras.loads >= 200
    assert len(model.loras._patched_layers) == taught
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
    save_file(tensors, tmp_path / "sick.safetensors")
    image_engine.submit(1, make_request(lora=LoraFile(tmp_path / "sick.safetensors", "0" * 64, 1.0, "sick")))
    end = run_to_end(image_engine, [1])[1]
    assert isinstance(end, Failed)
    assert (end.code, end.kind) == ("lora-invalid", "permanent")
    assert "sick" in end.message
    assert max_pixel_difference(draw_images(image_engine, {2: make_request(2)})[2], stock_pipeline.draw(make_request(2))) <= 1


def test_weights_of_an_adapter_folder_are_taken_too(image_engine: DiffusionEngine, tiny_models: TinyModels, tmp_path: Path) -> None:
    """PEFT writes `base_model.model.` before each key; the numbers are the same."""
    from actors.engines.diffusion.tiny_stable_diffusion import write_tiny_lora

    for form in ("peft", "diffusers"):
        write_tiny_lora(tmp_path / f"{form}.safetensors", tiny_models["tiny-sd"], seed=9, key_format=form)
    works = {
        number: make_request(lora=LoraFile(tmp_path / f"{form}.safetensors", str(number) * 64, 1.0, form))
        for number, form in enumerate(("peft", "diffusers"), start=1)
    }
    drawn = draw_images(image_engine, works)
    assert max_pixel_difference(drawn[1], drawn[2]) <= 1


def test_kohya_lora_matches_stock_pipeline(
    image_engine: DiffusionEngine, tiny_models: TinyModels, tmp_path: Path, stock_pipeline: StockPipeline
) -> None:
    """Most LoRAs in the world have this form; these ones change the text encoder and a convolution, too."""
    import torch
    from safetensors.torch import load_file, save_file

    unet = image_engine.models.get(image_engine.settings.model).pipeline.unet
    tensors = {}
    for name, tensor in load_file(tiny_models["tiny-lora-c"]).items():
        part, layer = name.split(".", 1)
        layer, half, _ = layer.rsplit(".", 2)
        kohya = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part] + layer.replace(".", "_")
        tensors[f"{kohya}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = tensor
        tensors[f"{kohya}.alpha"] = torch.tensor(2.0)
    weight = unet.mid_block.attentions[0].proj_in.weight
    assert weight.dim() == 4
    tensors["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"] = torch.randn(2, weight.shape[1], 1, 1)
    tensors["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"] = torch.randn(weight.shape[0], 2, 1, 1)
    tensors["lora_unet_mid_block_attentions_0_proj_in.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "kohya.safetensors")
    lora = LoraFile(tmp_path / "kohya.safetensors", "1" * 64, 0.8, "kohya")
    works = {1: make_request(lora=lora), 2: make_request(2), 3: make_request(3, lora=lora_file(tiny_models, "a"))}
    for number, drawn in draw_images(image_engine, works).items():
        assert max_pixel_difference(drawn, stock_pipeline.draw(works[number])) <= 1, works[number]


class MemoryLimit:
    """Stands before a module's forward: more rows than `most` do not fit."""

    def __init__(self, module: Any, most: int) -> None:
        self.forward, self.most = module.forward, most
        module.forward = self

    def __call__(self, sample: Any, *arguments: Any, **options: Any) -> Any:
        import torch

        if len(sample) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.forward(sample, *arguments, **options)


def test_low_memory_shrinks_batch_without_changing_images(image_engine: DiffusionEngine, stock_pipeline: StockPipeline) -> None:
    MemoryLimit(image_engine.models.get(image_engine.settings.model).pipeline.unet, most=4)
    works = {number: make_request(number) for number in range(1, 6)}
    for number, one in works.items():
        image_engine.submit(number, one)
    ends = run_to_end(image_engine, works)
    for number, end in ends.items():
        assert max_pixel_difference(output_images(end), stock_pipeline.draw(works[number])) <= 1
    assert any("batch-" in rung for rung in ends[5].result.rungs)  # type: ignore[union-attr]
    assert image_engine.oom.applied_counts.total() >= 1
    assert image_engine.oom.row_limit == image_engine.settings.max_rows, "an idle device starts afresh"


def test_exhausted_oom_fallbacks_end_process(image_engine: DiffusionEngine) -> None:
    MemoryLimit(image_engine.models.get(image_engine.settings.model).pipeline.unet, most=0)
    image_engine.submit(1, make_request())
    with pytest.raises(MemoryExhausted):
        run_to_end(image_engine, [1])
    assert set(image_engine.oom.applied_counts) == {"vae-slicing", "vae-tiling", "attention-slicing"}


def test_decode_out_of_memory_falls_back_to_tiling(image_engine: DiffusionEngine) -> None:
    pipeline = image_engine.models.get(image_engine.settings.model).pipeline
    decode, short = pipeline.vae.decode, [True]

    def narrow(*arguments: Any, **options: Any) -> Any:
        if not pipeline.vae.use_tiling:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        short.clear()
        return decode(*arguments, **options)

    pipeline.vae.decode = narrow
    image_engine.submit(1, make_request())
    end = run_to_end(image_engine, [1])[1]
    assert end.result.rungs == ("vae-slicing", "vae-tiling")  # type: ignore[union-attr]
    assert not short


def test_non_finite_latents_raise_error(image_engine: DiffusionEngine) -> None:
    pipeline = image_engine.models.get(image_engine.settings.model).pipeline
    image_engine.submit(1, make_request(guidance_scale=float("inf")))
    end = run_to_end(image_engine, [1])[1]
    assert isinstance(end, Failed)
    assert end.code == "picture-not-finite"
    assert pipeline is image_engine.models.get(image_engine.settings.model).pipeline


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"scheduler": "magic"}, "scheduler-unknown"), ({"model": "x"}, "model-unknown"), ({"width": 65}, "size-unknown")],
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
    assert engine.models.loads == 3 or engine.models.loads == 2
    assert len(engine.models.names) == 1
    engine.close()


@pytest.mark.parametrize("warm", [True, False])
def test_model_is_loaded_at_start_or_on_first_order(tiny_models: TinyModels, tmp_path: Path, warm: bool) -> None:
    engine = open_image_engine(tiny_models, tmp_path / "warm", warm=warm)
    assert engine.models.loads == int(warm)
    draw_images(engine, {1: make_request(), 2: make_request(2)})
    assert engine.models.loads == 1
    engine.close()


def test_a_preview_is_a_tiny_jpeg(tiny_models: TinyModels, tmp_path: Path) -> None:
    engine = open_image_engine(tiny_models, tmp_path / "preview", preview_seconds=1e-6)
    engine.submit(1, make_request(preview=True))
    events = [event for _ in range(9) for event in run_tick(engine)]
    previews = [event.preview for event in events if isinstance(event, Progressed) and event.preview]
    assert previews
    assert previews[0].startswith(b"\xff\xd8")
    engine.close()
