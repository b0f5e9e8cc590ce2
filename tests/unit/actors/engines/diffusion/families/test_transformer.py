"""What holds for every family with a transformer: defaults, limits of prompts, parts of one model, layers that LoRAs may change."""

import inspect
from typing import Any

import diffusers
import pytest
import torch

from actors.engines.diffusion.checkpoint_check import check_parts
from actors.engines.diffusion.families.registry import find_family
from actors.engines.diffusion.families.transformer import FlowFamily
from bus.errors import PermanentError
from tests.support.family_rows import draw_latents, load_family, make_order, tiny_checkpoint

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")]
FAMILIES = ("tiny-sd3", "tiny-flux", "tiny-flux-schnell", "tiny-qwen-image", "tiny-z-image", "tiny-pixart-sigma")
FLOW = FAMILIES[:-1]
LIMITS = {"tiny-sd3": 256, "tiny-flux": 512, "tiny-qwen-image": 1024, "tiny-z-image": 512, "tiny-pixart-sigma": 300}


@pytest.mark.parametrize("name", LIMITS)
def test_steps_and_guidance_of_an_order_that_names_none_are_those_of_diffusers(name: str) -> None:
    kind = find_family(name, tiny_checkpoint(name))

    options = inspect.signature(getattr(diffusers, kind.loader).__call__).parameters

    guidance = "true_cfg_scale" if name == "tiny-qwen-image" else "guidance_scale"
    assert (kind.defaults.steps, kind.defaults.guidance_scale) == (options["num_inference_steps"].default, options[guidance].default)
    assert kind.defaults.scheduler in kind.schedulers


@pytest.mark.parametrize("name", LIMITS)
def test_a_prompt_is_read_whole_up_to_the_limit_and_refused_beyond_with_the_count(name: str) -> None:
    family, limit = load_family(name, torch.float32), LIMITS[name]
    around, _ = family.count_prompt("a")  # type: ignore[attr-defined]
    longest = "a" * (limit - around + 1)
    order = make_order(family, longest, **unguided(name))

    with torch.inference_mode():
        (condition,) = family.encode(order)
        (shorter,) = family.encode(make_order(family, longest[:-1], **unguided(name)))

    assert condition["text"].shape[1] <= limit + (77 if name == "tiny-sd3" else 0)
    assert condition["text"].shape != shorter["text"].shape or not torch.equal(condition["text"], shorter["text"])
    with pytest.raises(PermanentError, match=rf"the prompt has {limit + 1} tokens; .* at most {limit}") as failure:
        family.encode(make_order(family, longest + "a", **unguided(name)))
    assert failure.value.code == "prompt-too-long"


@pytest.mark.parametrize("name", LIMITS)
def test_a_negative_prompt_has_the_same_limit_where_it_is_read(name: str) -> None:
    family = load_family(name, torch.float32)
    too_long = "a" * (LIMITS[name] + 1)
    unread = make_order(family, **unguided(name) | {"negative_prompt": too_long})

    with torch.inference_mode():
        assert len(family.encode(unread)) == 1
        with pytest.raises(PermanentError, match="the negative prompt has"):
            family.encode(make_order(family, negative_prompt=too_long))


@pytest.mark.parametrize("name", LIMITS)
def test_conditions_are_in_the_dtype_of_the_transformer(name: str) -> None:
    family = load_family(name, torch.float32)
    family.denoiser.to(torch.bfloat16)

    with torch.inference_mode():
        conditions = family.encode(make_order(family, negative_prompt="a dog"))

    dtypes = [tensor.dtype for condition in conditions for tensor in condition.values()]
    assert len(conditions) == 2
    assert {dtype for dtype in dtypes if dtype.is_floating_point} == {torch.bfloat16}


@pytest.mark.parametrize("name", FAMILIES)
def test_sides_are_multiples_of_16(name: str) -> None:
    family = load_family(name)

    with pytest.raises(PermanentError, match="multiples of 16") as failure:
        make_order(family, width=72)

    assert failure.value.code == "size-unsupported"
    assert family.latent_size(make_order(family, width=96, height=64)) == (8, 12)


@pytest.mark.parametrize("name", LIMITS)
def test_parts_of_different_models_are_refused(name: str) -> None:
    family = load_family(name)
    family.pipeline.tokenizer.add_tokens([f"word{number}" for number in range(600)])

    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, the text_encoder \d+"):
        family.check()

    family = load_family(name)
    family.latent_channels = 8  # type: ignore[misc]
    with pytest.raises(ValueError, match="the VAE's latent channels"):
        family.check()


@pytest.mark.parametrize("name", LIMITS)
def test_a_transformer_of_another_width_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family(name)
    widths = family.widths()  # type: ignore[attr-defined]
    for what, (given, _) in widths.items():
        monkeypatch.setattr(family, "widths", lambda what=what, given=given: {**widths, what: (given, given + 1)})
        with pytest.raises(ValueError, match=f"{what}: {given};.*different models"):
            family.check()


@pytest.mark.parametrize("limit", ["77", None, 2])
@pytest.mark.parametrize("name", ["tiny-sd3", "tiny-flux"])
def test_a_tokenizer_whose_limit_is_no_number_of_tokens_is_refused(name: str, limit: object) -> None:
    family = load_family(name)
    family.pipeline.tokenizer.model_max_length = limit

    with pytest.raises(ValueError, match=r"model_max_length in tokenizer/tokenizer_config\.json is"):
        check_parts(family)


@pytest.mark.parametrize("name", FLOW)
def test_another_scheduler_than_that_of_flow_matching_is_refused(name: str) -> None:
    family = load_family(name)
    family.pipeline.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()

    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler"):
        family.check()


def test_larger_pictures_stay_longer_at_high_levels_of_noise() -> None:
    family = load_family("tiny-flux")
    assert isinstance(family, FlowFamily)
    sizes = [(256, 256), (512, 512), (1024, 1024)]

    shifts = [family.shift(make_order(family, width=width, height=height)) for width, height in sizes]

    assert shifts[0] == pytest.approx(0.5)
    assert shifts[2] == pytest.approx(1.15)
    middle = [family.build_schedule(make_order(family, steps=4, width=width, height=height)).sigmas[2] for width, height in sizes]
    assert middle == sorted(set(middle))


@pytest.mark.parametrize("name", FAMILIES)
def test_only_layers_that_see_rows_apart_may_be_changed_by_adapters(name: str) -> None:
    family = load_family(name, torch.float32)
    seen: dict[str, set[int]] = {}
    for layer, module in family.denoiser.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs, layer=layer: seen.setdefault(layer, set()).add(len(inputs[0])))
    orders = [make_order(family, prompt, steps=2, **unguided(name)) for prompt in ("a", "a house by the sea", "a dog")]

    draw_latents(family, orders)

    together = {layer for layer, lengths in seen.items() if lengths != {len(orders)}}
    assert together == {layer for layer in seen if family.lora_excluded("transformer", layer)}
    assert len(seen) > 10


def unguided(name: str) -> dict[str, Any]:
    """What an order names of which the negative prompt is not read."""
    if name.startswith("tiny-flux"):
        return {"negative_prompt": "a dog", "true_cfg_scale": 1.0}
    return {"negative_prompt": "a dog", "guidance_scale": 0.0 if name == "tiny-z-image" else 1.0}
