"""The image engine beside the stock pipeline: the same seed gives the same picture, whoever else is at work."""

import random
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.engines.diffusers_image import DiffusersImage
from actors.engines.image_work import ImageMade, ImageWork, LoraFile
from actors.engines.protocol import Advanced, Failed, Finished, MemoryExhausted
from actors.engines.schedulers import SCHEDULERS
from bus.errors import PermanentError
from tests.unit.actors.engines.easel import Stock, apart, draw, finish, lora_file, open_easel, pictures, step

# The libraries below warn of their own future.
pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:peft"),
]  # fmt: skip

Made = dict[str, Path]


def work(seed: int = 1, **changes: Any) -> ImageWork:
    return ImageWork(**{"prompt": "a lighthouse 등대", "seed": seed, "width": 64, "height": 64, "steps": 8, **changes})


def test_every_scheduler_draws_what_the_stock_pipeline_draws_though_all_share_their_steps(
    easel: DiffusersImage, stock: Stock, tiny: Made
) -> None:
    loras = [None, lora_file(tiny, "a"), lora_file(tiny, "b", 0.5), lora_file(tiny, "c", 1.5)]
    works = {
        number: work(number, scheduler=name, steps=6 + number, guidance_scale=3.0 + number, lora=loras[number % 4], negative_prompt="안개")
        for number, name in enumerate(SCHEDULERS)
    }
    for number, drawn in draw(easel, works).items():
        assert apart(drawn, stock.draw(works[number])) <= 1, works[number]


def test_two_orders_with_different_loras_differ_so_the_comparison_can_fail(easel: DiffusersImage, tiny: Made) -> None:
    drawn = draw(easel, {1: work(), 2: work(lora=lora_file(tiny, "a")), 3: work(lora=lora_file(tiny, "a", 0.3)), 4: work(2)})
    assert min(apart(drawn[1], drawn[other]) for other in (2, 3, 4)) > 8


def test_without_guidance_there_is_no_unconditional_half(easel: DiffusersImage, stock: Stock) -> None:
    works = {1: work(guidance_scale=1.0), 2: work(guidance_scale=0.0), 3: work()}
    for number, drawn in draw(easel, works).items():
        assert apart(drawn, stock.draw(works[number])) <= 1


def test_pictures_of_one_order_have_seeds_of_their_own(easel: DiffusersImage, stock: Stock) -> None:
    drawn = draw(easel, {1: work(5, count=3), 2: work(7), 3: work(20, count=2, deterministic=True, width=128)})
    assert apart(drawn[1], stock.draw(work(5, count=3))) <= 1
    assert apart(drawn[1][2:], drawn[2]) <= 1
    assert apart(drawn[3], stock.draw(work(20, count=2, width=128))) <= 1


@pytest.mark.parametrize("mix", range(3))
def test_any_mix_of_arrival_steps_guidance_lora_and_cancel_gives_each_its_own_picture(
    mix: int, easel: DiffusersImage, stock: Stock, tiny: Made
) -> None:
    dice = random.Random(mix)
    works = {number: dealt(dice, number, tiny) for number in range(1, 9)}
    arrivals = {number: dice.randrange(0, 14) for number in works}
    cancelled = {number: arrivals[number] + dice.randrange(1, 5) for number in works if dice.random() < 0.25}
    ends: dict[int, Any] = {}
    for tick in range(40):
        for number in [number for number, at in arrivals.items() if at == tick]:
            easel.submit(number, works[number])
        for number in [number for number, at in cancelled.items() if at == tick and number not in ends]:
            assert easel.cancel(number)
        ends |= {event.ticket: event for event in step(easel) if isinstance(event, Finished | Failed)}
    ends |= finish(easel, set(works) - set(cancelled) - set(ends))
    for number in set(works) - set(cancelled):
        assert apart(pictures(ends[number]), stock.draw(works[number])) <= 1, works[number]


def test_in_double_precision_the_pictures_are_the_same_to_the_last_bit(tiny: Made, tmp_path: Path) -> None:
    """So what differs in FP32 is rounding, and nothing of one order leaks into another."""
    import torch

    engine, stock = open_easel(tiny, tmp_path / "double", max_rows=16), Stock(tiny["tiny-sd"])
    engine.models.get(engine.settings.model).pipeline.to(dtype=torch.float64)
    stock.pipeline.to(dtype=torch.float64)
    dice = random.Random(99)
    works = {number: dealt(dice, number, tiny) for number in range(1, 9)}
    for number, drawn in draw(engine, works).items():
        assert apart(drawn, stock.draw(works[number])) == 0, works[number]
    engine.close()


def dealt(dice: random.Random, number: int, tiny: Made) -> ImageWork:
    name = dice.choice([None, "a", "b", "c"])
    return work(
        number, prompt=f"order {number}", steps=dice.randrange(2, 12), guidance_scale=dice.choice([1.0, 3.0, 7.5, 12.0]),
        width=dice.choice([64, 64, 96]), count=dice.choice([1, 1, 2]), scheduler=dice.choice(["dpm++", "euler", "euler-a", "ddim"]),
        lora=lora_file(tiny, name, dice.choice([0.5, 1.0])) if name else None, deterministic=dice.random() < 0.2,
    )  # fmt: skip


def test_an_order_joins_at_the_next_step_and_leaves_when_it_is_done(easel: DiffusersImage) -> None:
    easel.submit(1, work(steps=30))
    for _ in range(5):
        step(easel)
    easel.submit(2, work(2, steps=3))
    ends: list[int] = []
    seen = {1: 0, 2: 0}
    while len(ends) < 2:
        for event in step(easel):
            if isinstance(event, Advanced):
                seen[event.ticket] = event.step
            if isinstance(event, Finished):
                ends.append(event.ticket)
                if event.ticket == 2:
                    assert seen[1] < 30, "the short order did not wait for the long one"
                    assert event.result.largest_batch == 2
    assert ends == [2, 1]


def test_a_deterministic_order_shares_no_step(easel: DiffusersImage) -> None:
    easel.submit(1, work(deterministic=True, count=2))
    easel.submit(2, work(2))
    made: ImageMade = finish(easel, [1, 2])[1].result  # type: ignore[union-attr]
    assert made.largest_batch == 1


def test_a_deterministic_order_is_the_same_to_the_last_bit_alone_and_beside_others(easel: DiffusersImage) -> None:
    order = work(3, deterministic=True, count=2)
    alone = draw(easel, {1: order})[1]
    beside = draw(easel, {number: order if number == 3 else work(number) for number in range(2, 6)})[3]
    assert apart(alone, beside) == 0


def test_cancel_takes_out_the_one_that_is_named(easel: DiffusersImage) -> None:
    for number in (1, 2):
        easel.submit(number, work(number, steps=20))
    step(easel)
    step(easel)
    assert easel.cancel(1)
    assert not easel.cancel(1)
    assert not easel.cancel(99)
    assert {row.ticket for row in easel.groups.rows} == {2}
    assert set(finish(easel, [2])) == {2}
    assert easel.idle_seconds() != 0


def test_fewer_slots_than_loras_make_orders_wait_and_nothing_else(tiny: Made, tmp_path: Path, stock: Stock) -> None:
    engine = open_easel(tiny, tmp_path / "one-slot", lora_slots=1)
    works = {number: work(number, lora=lora_file(tiny, name)) for number, name in enumerate("abca", start=1)}
    for number, drawn in draw(engine, works).items():
        assert apart(drawn, stock.draw(works[number])) <= 1
    engine.close()


def test_swapping_loras_without_end_keeps_memory_and_layers_where_they_were(tiny: Made, tmp_path: Path) -> None:
    """Two hundred swaps through two slots."""
    engine = open_easel(tiny, tmp_path / "soak", lora_slots=2)
    model = engine.models.get(engine.settings.model)
    for number in range(12):
        swap(model, tiny, number)
    before, taught = psutil.Process().memory_info().rss, len(model.loras._taught)
    for number in range(200):
        swap(model, tiny, number)
    assert model.loras.loads >= 200
    assert len(model.loras._taught) == taught
    assert len(model.loras) == len(model.loras._by_name) == 2
    assert psutil.Process().memory_info().rss - before < 24 << 20
    engine.close()


def swap(model: Any, tiny: Made, number: int) -> None:
    lora = lora_file(tiny, "abc"[number % 3], scale=1.0 + number % 5)
    model.loras.acquire(lora)
    model.loras.release(lora)


def test_a_lora_with_values_that_are_not_finite_is_refused_and_leaves_no_trace(
    easel: DiffusersImage, tiny: Made, tmp_path: Path, stock: Stock
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny["tiny-lora-a"])
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, tmp_path / "sick.safetensors")
    easel.submit(1, work(lora=LoraFile(tmp_path / "sick.safetensors", "0" * 64, 1.0, "sick")))
    end = finish(easel, [1])[1]
    assert isinstance(end, Failed)
    assert (end.code, end.kind) == ("lora-invalid", "permanent")
    assert "sick" in end.message
    assert apart(draw(easel, {2: work(2)})[2], stock.draw(work(2))) <= 1


def test_weights_of_an_adapter_folder_are_taken_too(easel: DiffusersImage, tiny: Made, tmp_path: Path) -> None:
    """PEFT writes `base_model.model.` before each key; the numbers are the same."""
    from actors.engines.tiny_diffusion import write_lora

    for form in ("peft", "diffusers"):
        write_lora(tmp_path / f"{form}.safetensors", tiny["tiny-sd"], seed=9, form=form)
    works = {
        number: work(lora=LoraFile(tmp_path / f"{form}.safetensors", str(number) * 64, 1.0, form))
        for number, form in enumerate(("peft", "diffusers"), start=1)
    }
    drawn = draw(easel, works)
    assert apart(drawn[1], drawn[2]) <= 1


def test_kohyas_form_with_its_alphas_draws_what_the_stock_pipeline_draws(
    easel: DiffusersImage, tiny: Made, tmp_path: Path, stock: Stock
) -> None:
    """Most LoRAs in the world have this form; these ones change the text encoder and a convolution, too."""
    import torch
    from safetensors.torch import load_file, save_file

    unet = easel.models.get(easel.settings.model).pipeline.unet
    tensors = {}
    for name, tensor in load_file(tiny["tiny-lora-c"]).items():
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
    works = {1: work(lora=lora), 2: work(2), 3: work(3, lora=lora_file(tiny, "a"))}
    for number, drawn in draw(easel, works).items():
        assert apart(drawn, stock.draw(works[number])) <= 1, works[number]


class ShortOfMemory:
    """Stands before a module's forward: more rows than `most` do not fit."""

    def __init__(self, module: Any, most: int) -> None:
        self.forward, self.most = module.forward, most
        module.forward = self

    def __call__(self, sample: Any, *arguments: Any, **options: Any) -> Any:
        import torch

        if len(sample) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.forward(sample, *arguments, **options)


def test_too_little_memory_makes_the_batch_smaller_and_the_pictures_no_worse(easel: DiffusersImage, stock: Stock) -> None:
    ShortOfMemory(easel.models.get(easel.settings.model).pipeline.unet, most=4)
    works = {number: work(number) for number in range(1, 6)}
    for number, one in works.items():
        easel.submit(number, one)
    ends = finish(easel, works)
    for number, end in ends.items():
        assert apart(pictures(end), stock.draw(works[number])) <= 1
    assert any("batch-" in rung for rung in ends[5].result.rungs)  # type: ignore[union-attr]
    assert easel.rungs.climbed.total() >= 1
    assert easel.rungs.limit == easel.settings.max_rows, "an idle device starts afresh"


def test_no_memory_at_all_ends_the_process_after_every_rung(easel: DiffusersImage) -> None:
    ShortOfMemory(easel.models.get(easel.settings.model).pipeline.unet, most=0)
    easel.submit(1, work())
    with pytest.raises(MemoryExhausted):
        finish(easel, [1])
    assert set(easel.rungs.climbed) == {"vae-slicing", "vae-tiling", "attention-slicing"}


def test_a_decode_that_finds_no_memory_is_tiled(easel: DiffusersImage) -> None:
    pipeline = easel.models.get(easel.settings.model).pipeline
    decode, short = pipeline.vae.decode, [True]

    def narrow(*arguments: Any, **options: Any) -> Any:
        if not pipeline.vae.use_tiling:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        short.clear()
        return decode(*arguments, **options)

    pipeline.vae.decode = narrow
    easel.submit(1, work())
    end = finish(easel, [1])[1]
    assert end.result.rungs == ("vae-slicing", "vae-tiling")  # type: ignore[union-attr]
    assert not short


def test_numbers_out_of_range_are_a_fault_and_not_a_black_picture(easel: DiffusersImage) -> None:
    pipeline = easel.models.get(easel.settings.model).pipeline
    easel.submit(1, work(guidance_scale=float("inf")))
    end = finish(easel, [1])[1]
    assert isinstance(end, Failed)
    assert end.code == "picture-not-finite"
    assert pipeline is easel.models.get(easel.settings.model).pipeline


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"scheduler": "magic"}, "scheduler-unknown"), ({"model": "x"}, "model-unknown"), ({"width": 65}, "size-unknown")],
)
def test_what_cannot_be_drawn_is_refused_before_it_joins(easel: DiffusersImage, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(PermanentError) as caught:
        easel.submit(1, work(**changes))
    assert caught.value.code == code
    assert easel.idle_seconds() != 0


def test_models_beyond_the_budget_take_turns(tiny: Made, tmp_path: Path, stock: Stock) -> None:
    from actors.engines.tiny_diffusion import write_diffusion

    write_diffusion(tmp_path / "other", seed=5)
    engine = open_easel(tiny, tmp_path / "two", models={"other": str(tmp_path / "other")}, memory_budget_bytes=400_000, pinned=False)
    drawn = draw(engine, {1: work(steps=12), 2: work(model="other"), 3: work(2)})
    assert apart(drawn[1], stock.draw(work(steps=12))) <= 1
    assert apart(drawn[2], Stock(tmp_path / "other").draw(work())) <= 1
    assert engine.models.loads == 3 or engine.models.loads == 2
    assert len(engine.models.names) == 1
    engine.close()


@pytest.mark.parametrize("warm", [True, False])
def test_the_model_is_loaded_at_the_start_when_asked_and_else_with_the_first_order(tiny: Made, tmp_path: Path, warm: bool) -> None:
    engine = open_easel(tiny, tmp_path / "warm", warm=warm)
    assert engine.models.loads == int(warm)
    draw(engine, {1: work(), 2: work(2)})
    assert engine.models.loads == 1
    engine.close()


def test_a_preview_is_a_tiny_jpeg(tiny: Made, tmp_path: Path) -> None:
    engine = open_easel(tiny, tmp_path / "preview", preview_seconds=1e-6)
    engine.submit(1, work(preview=True))
    events = [event for _ in range(9) for event in step(engine)]
    previews = [event.preview for event in events if isinstance(event, Advanced) and event.preview]
    assert previews
    assert previews[0].startswith(b"\xff\xd8")
    engine.close()
