"""Models in memory: loaded once, within the budget, the least recently used leaving first."""

import threading
import time
from typing import Any

import pytest

from actors.engines.process.model_cache import InsufficientMemory, ModelCache


def open_residency(budget: int = 100, **options: Any) -> tuple[ModelCache[str], list[str], list[str]]:
    loaded: list[str] = []
    left: list[str] = []

    def load(name: str) -> str:
        loaded.append(name)
        return f"model {name}"

    sizes = {"small": 30, "middle": 50, "large": 90, "huge": 300}
    residency = ModelCache(budget, measure=sizes.__getitem__, load=options.pop("load", load), unload=left.append, **options)
    return residency, loaded, left


def test_concurrent_first_requests_load_model_once() -> None:
    loads: list[str] = []

    def load(name: str) -> str:
        loads.append(name)
        time.sleep(0.05)
        return name

    residency, _, _ = open_residency(load=load)
    threads = [threading.Thread(target=residency.get, args=("small",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["small"]
    assert residency.loads == 1


def test_failed_load_is_cleaned_up_and_retryable() -> None:
    tries: list[str] = []

    def load(name: str) -> str:
        tries.append(name)
        if len(tries) == 1:
            raise OSError("the disk is away")
        return name

    residency, _, _ = open_residency(load=load)
    with pytest.raises(OSError, match="disk"):
        residency.get("small")
    assert residency.names == []
    assert residency.get("small") == "small"


def test_least_recently_used_model_is_evicted() -> None:
    residency, loaded, left = open_residency()
    for name in ("small", "middle", "small", "large"):
        residency.get(name)
    assert left == ["model middle", "model small"]
    assert residency.names == ["large"]
    assert loaded == ["small", "middle", "large"]


def test_pinned_and_in_use_models_are_not_evicted() -> None:
    for options in ({"pinned": frozenset({"small"})}, {"busy": lambda name: name == "small"}):
        residency, _, left = open_residency(**options)
        residency.get("small")
        with pytest.raises(InsufficientMemory):
            residency.get("large")
        assert left == []
        assert residency.get("middle")


def test_oversized_model_is_loaded_when_alone() -> None:
    residency, _, left = open_residency()
    residency.get("small")
    residency.get("huge")
    assert left == ["model small"]
    assert residency.used_bytes == 300
