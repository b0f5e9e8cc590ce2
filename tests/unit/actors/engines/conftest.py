"""Tiny checkpoints, made once for the run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.engines.diffusers_image import DiffusersImage
from ops.models import make_tiny
from tests.unit.actors.engines.easel import Stock, open_easel


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def stock(tiny: dict[str, Path]) -> Stock:
    return Stock(tiny["tiny-sd"])


@pytest.fixture
def easel(tiny: dict[str, Path], tmp_path: Path) -> Iterator[DiffusersImage]:
    engine = open_easel(tiny, tmp_path / "spool")
    yield engine
    engine.close()
