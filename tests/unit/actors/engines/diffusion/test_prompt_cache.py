"""Conditions are encoded once for orders with the same prompt, and never serve an order that would be encoded to others."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from actors.engines.diffusion.batching import Condition
from actors.engines.diffusion.prompt_cache import ENCODED_FIELDS, PromptCache, encoded_request
from actors.engines.diffusion.requests import EditSource, InputPicture, LoraFile, ResolvedRequest

PICTURE = InputPicture("RGB", 1, 1, b"\0\0\0")


def make_request(**changes: Any) -> ResolvedRequest:
    return replace(ResolvedRequest("a cat", 1, width=64, height=64, steps=2, guidance_scale=7.0, scheduler="euler"), **changes)


def make_encoder(values: int = 64) -> tuple[list[ResolvedRequest], Callable[[ResolvedRequest], list[Condition]]]:
    """The requests that were encoded, and an encoder whose conditions are 4 · `values` bytes each, two for an order."""
    encoded: list[ResolvedRequest] = []

    def encode(request: ResolvedRequest) -> list[Condition]:
        encoded.append(request)
        return [{"embeds": torch.full((1, values), float(len(encoded)))} for _ in range(2)]

    return encoded, encode


def test_an_order_with_the_same_prompt_gets_the_same_conditions() -> None:
    cache, (encoded, encode) = PromptCache(1 << 20), make_encoder()
    first = cache.get(make_request(), (), encode)
    second = cache.get(make_request(seed=9, steps=30, scheduler="ddim", count=4, metadata={"a": "b"}, edit=EditSource(PICTURE)), (), encode)
    assert (len(encoded), cache.hits, cache.misses) == (1, 1, 1)
    assert all(torch.equal(one["embeds"], other["embeds"]) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "changes",
    [{"prompt": "a dog"}, {"negative_prompt": "a dog"}, {"width": 128}, {"height": 128}, {"guidance_scale": 1.0}, {"true_cfg_scale": 4.0}],
)
def test_what_a_condition_depends_on_is_in_the_key(changes: dict[str, Any]) -> None:
    cache, (encoded, encode) = PromptCache(1 << 20), make_encoder()
    cache.get(make_request(), (), encode)
    cache.get(make_request(**changes), (), encode)
    assert len(encoded) == 2


def test_adapters_of_a_text_encoder_and_their_scales_are_in_the_key() -> None:
    cache, (encoded, encode) = PromptCache(1 << 20), make_encoder()
    for adapters in ((), (("lora-1", 1.0),), (("lora-1", 0.5),), (("lora-2", 1.0),), (("lora-1", 1.0), ("lora-2", 1.0))):
        cache.get(make_request(), adapters, encode)
    assert len(encoded) == 5
    cache.get(make_request(), (("lora-1", 0.5),), encode)
    assert len(encoded) == 5


def test_the_encoder_sees_nothing_of_an_order_beside_the_key() -> None:
    everything: dict[str, Any] = {
        "count": 4, "model": "other", "loras": (LoraFile(None, "0", 1.0, ""),), "edit": EditSource(PICTURE), "deterministic": True,  # type: ignore[arg-type]
        "preview": True, "metadata": {"a": "b"}, "steps": 9, "scheduler": "ddim", "quality": 3, "output_format": "jpeg", "seed": 5,
    }  # fmt: skip
    request = encoded_request(make_request(prompt="a dog", true_cfg_scale=2.0, **everything))
    assert {field.name for field in fields(request) if getattr(request, field.name) == everything.get(field.name, "absent")} == set()
    assert [getattr(request, name) for name in ENCODED_FIELDS] == ["a dog", "", 64, 64, 7.0, 2.0]


def test_the_least_recently_used_conditions_are_dropped_beyond_the_limit() -> None:
    encoded, encode = make_encoder(values=64)
    cache = PromptCache(2 * (2 * 64 * 4 + 1))  # two orders of two halves, a prompt of one character each
    for prompt in ("a", "b", "a", "c"):
        cache.get(make_request(prompt=prompt), (), encode)
    assert [request.prompt for request in encoded] == ["a", "b", "c"]
    assert (len(cache), cache.used_bytes) == (2, cache.max_bytes)
    cache.get(make_request(prompt="a"), (), encode)
    assert len(encoded) == 3
    cache.get(make_request(prompt="b"), (), encode)
    assert len(encoded) == 4


def test_conditions_that_are_larger_than_the_limit_are_not_kept_and_0_keeps_none() -> None:
    for limit in (0, 100):
        cache, (encoded, encode) = PromptCache(limit), make_encoder()
        for _ in range(2):
            cache.get(make_request(), (), encode)
        assert (len(encoded), len(cache), cache.used_bytes) == (2, 0, 0)


def test_a_prompt_that_cannot_be_encoded_leaves_nothing_behind() -> None:
    cache = PromptCache(1 << 20)

    def encode(_: ResolvedRequest) -> list[Condition]:
        raise ValueError("too long")

    with pytest.raises(ValueError, match="too long"):
        cache.get(make_request(), (), encode)
    assert (len(cache), cache.used_bytes) == (0, 0)


def test_an_order_may_change_its_dictionaries_without_changing_those_of_others() -> None:
    cache, (_, encode) = PromptCache(1 << 20), make_encoder()
    cache.get(make_request(), (), encode)[0].clear()
    assert cache.get(make_request(), (), encode)[0].keys() == {"embeds"}
    cache.clear()
    assert (len(cache), cache.used_bytes) == (0, 0)
