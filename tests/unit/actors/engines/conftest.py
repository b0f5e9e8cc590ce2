"""Tiny checkpoints, written once per test session, and the engine and the stock pipeline that use them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.engines.diffusion.engine import DiffusionEngine
from ops.local.tiny_models import make_tiny_models
from tests.support.engine_fixture import StockPipeline, open_image_engine


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def stock_pipeline(tiny_models: dict[str, Path]) -> StockPipeline:
    return StockPipeline(tiny_models["tiny-sd"])


@pytest.fixture
def torch_threads() -> Iterator[Callable[[], int]]:
    """Says with how many threads torch computes; the number is what it was when the test ends."""
    import torch

    before = torch.get_num_threads()
    yield torch.get_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def image_engine(tiny_models: dict[str, Path], tmp_path: Path) -> Iterator[DiffusionEngine]:
    engine = open_image_engine(tiny_models, tmp_path / "shm")
    yield engine
    engine.close()
