"""Models in memory: loaded once, within the budget, the least recently used evicted first."""

import threading
import time
from typing import Any

import pytest

from actors.engines.process.model_cache import InsufficientMemory, ModelCache


def make_cache(budget: int = 100, **options: Any) -> tuple[ModelCache[str], list[str], list[str]]:
    """The cache, the names that were loaded, and the models that were unloaded."""
    loaded: list[str] = []
    unloaded: list[str] = []

    def load(name: str) -> str:
        loaded.append(name)
        return f"model {name}"

    sizes = {"small": 30, "middle": 50, "large": 90, "huge": 300}
    cache = ModelCache(budget, measure=sizes.__getitem__, load=options.pop("load", load), unload=unloaded.append, **options)
    return cache, loaded, unloaded


def test_concurrent_first_requests_load_model_once() -> None:
    loads: list[str] = []

    def load(name: str) -> str:
        loads.append(name)
        time.sleep(0.05)
        return name

    cache, _, _ = make_cache(load=load)
    threads = [threading.Thread(target=cache.get, args=("small",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["small"]
    assert cache.loads == 1


def test_failed_load_is_cleaned_up_and_retryable() -> None:
    attempts: list[str] = []

    def load(name: str) -> str:
        attempts.append(name)
        if len(attempts) == 1:
            raise OSError("the disk is unavailable")
        return name

    cache, _, _ = make_cache(load=load)
    with pytest.raises(OSError, match="disk"):
        cache.get("small")
    assert cache.names == []
    assert cache.get("small") == "small"


def test_least_recently_used_model_is_evicted() -> None:
    cache, loaded, unloaded = make_cache()
    for name in ("small", "middle", "small", "large"):
        cache.get(name)
    assert unloaded == ["model middle", "model small"]
    assert cache.names == ["large"]
    assert loaded == ["small", "middle", "large"]


def test_pinned_and_in_use_models_are_not_evicted() -> None:
    for options in ({"pinned": frozenset({"small"})}, {"in_use": lambda name: name == "small"}):
        cache, _, unloaded = make_cache(**options)
        cache.get("small")
        with pytest.raises(InsufficientMemory):
            cache.get("large")
        assert unloaded == []
        assert cache.get("middle")


def test_oversized_model_is_loaded_when_alone() -> None:
    cache, _, unloaded = make_cache()
    cache.get("small")
    cache.get("huge")
    assert unloaded == ["model small"]
    assert cache.used_bytes == 300


def test_the_size_of_a_loaded_model_replaces_the_estimate_and_follows_it() -> None:
    sizes = {"model small": 30, "model middle": 50}
    cache, loaded, unloaded = make_cache(measure_loaded=lambda model: sizes[model])
    cache.get("small")
    assert cache.used_bytes == 30

    sizes["model small"] = 60  # a LoRA was loaded for it
    assert cache.used_bytes == 60
    cache.get("middle")
    assert (loaded, unloaded, cache.used_bytes) == (["small", "middle"], ["model small"], 50)


def test_a_model_that_takes_more_than_estimated_displaces_those_that_no_order_uses() -> None:
    sizes = {"model small": 30, "model middle": 95}
    cache, _, unloaded = make_cache(measure_loaded=lambda model: sizes[model])
    cache.get("small")
    cache.get("middle")

    assert unloaded == ["model small"]
    assert cache.names == ["middle"]


def test_a_model_in_use_stays_beside_one_that_takes_more_than_estimated() -> None:
    sizes = {"model small": 30, "model middle": 95}
    cache, _, unloaded = make_cache(measure_loaded=lambda model: sizes[model], in_use=lambda name: name == "small")
    cache.get("small")
    cache.get("middle")

    assert unloaded == []
    assert cache.used_bytes == 125
