"""What the settings of memory and speed do to a model in the engine."""

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.engines.diffusion.engine import DiffusionEngine, open_engine
from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.process.protocol import Finished
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError
from tests.support.engine_fixture import run_to_end, silent_host
from tests.support.family_rows import tiny_checkpoint

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

Opener = Callable[..., DiffusionEngine]


@pytest.fixture
def open_tiny(tmp_path: Path) -> Iterator[Opener]:
    engines: list[DiffusionEngine] = []

    def open_tiny(name: str, **settings: Any) -> DiffusionEngine:
        given = {"dtype": "float32", "threads": 1, "measure_seconds": 0.0, "hash_weights": False} | settings
        engines.append(open_engine(ImageSettings(model=str(tiny_checkpoint(name)), **given), silent_host(tmp_path)))
        return engines[-1]

    yield open_tiny
    for engine in engines:
        engine.close()


def order(seed: int, prompt: str = "a cat", **changes: Any) -> DiffusionRequest:
    return DiffusionRequest(prompt, seed=seed, width=64, height=64, **{"steps": 2, **changes})


@pytest.mark.parametrize(("limit", "calls"), [(1 << 20, 2), (0, 3)])
def test_a_prompt_is_encoded_once_for_all_images_and_for_later_orders(
    open_tiny: Opener, monkeypatch: pytest.MonkeyPatch, limit: int, calls: int
) -> None:
    engine = open_tiny("tiny-sd15", prompt_cache_bytes=limit)
    family, encoded = engine.models.default().family, []
    encode = family.encode
    monkeypatch.setattr(family, "encode", lambda request: encoded.append(request.prompt) or encode(request))
    for number, request in enumerate([order(1, count=3), order(2), order(3, prompt="a dog")]):
        engine.submit(number, request)
    events = run_to_end(engine, {0, 1, 2})
    assert all(isinstance(event, Finished) for event in events.values())
    assert len(encoded) == calls


def test_a_loaded_model_counts_with_its_prompts_and_is_freed_when_it_is_evicted(open_tiny: Opener) -> None:
    engine = open_tiny("tiny-flux", block_cache_threshold=0.1, offload_text_encoders="always")
    model = engine.models.default()
    expected, before = engine.models._expected_bytes(model.name), engine.models.cache.used_bytes
    assert before == pytest.approx(expected, rel=0.01)
    engine.submit(1, order(1))
    run_to_end(engine, {1})
    assert engine.models.cache.used_bytes == before + model.prompts.used_bytes > before

    parts = [weakref.ref(model.family.denoiser), weakref.ref(model.family.pipeline.text_encoder_2)]
    engine.models.cache.evict(model.name)
    assert [part() for part in parts] == [None, None]


def test_nothing_is_wrapped_or_changed_without_the_settings(open_tiny: Opener) -> None:
    engine = open_tiny("tiny-flux")
    family = engine.models.default().family
    assert "denoise" not in vars(family)
    assert not any("forward" in vars(block) for block in family.denoiser.transformer_blocks)
    assert {type(layer).__name__ for layer in family.denoiser.modules() if "Linear" in type(layer).__name__} == {"Linear"}
    assert engine.info["warnings"] == {engine.settings.model: []}


def test_first_block_caching_is_refused_by_name_for_a_unet(open_tiny: Opener) -> None:
    with pytest.raises(PermanentError, match=r"IMAGE_BLOCK_CACHE_THRESHOLD.*Stable Diffusion") as refused:
        open_tiny("tiny-sd15", block_cache_threshold=0.1)
    assert refused.value.code == "block-cache-unsupported"


def test_what_cannot_be_used_is_a_warning_of_the_engine_and_orders_are_served(open_tiny: Opener) -> None:
    engine = open_tiny("tiny-qwen-image", channels_last=True, compile=True, block_cache_threshold=0.1)
    warnings = engine.info["warnings"][engine.settings.model]
    assert [warning.split()[0] for warning in warnings] == ["IMAGE_CHANNELS_LAST", "IMAGE_COMPILE"]
    engine.submit(1, order(1))
    assert isinstance(run_to_end(engine, {1})[1], Finished)


def test_text_encoders_leave_the_device_before_anything_is_sliced(open_tiny: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_tiny("tiny-sd15")
    model = engine.models.default()
    monkeypatch.setattr(model.text_encoders, "device", "meta")
    assert engine._next_fallback(model, 1) == "text-encoder-offload"
    assert engine._next_fallback(model, 1) == "vae-slicing"
    assert model.applied_fallbacks == {"text-encoder-offload", "vae-slicing"}
