"""Engines with the tiny checkpoints of all families, each opened once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.local.tiny_models import make_tiny_families
from tests.support.family_engine import FamilyEngines


@pytest.fixture(scope="session")
def tiny_families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each checkpoint and ControlNet by its name."""
    return make_tiny_families(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="package")
def engines(tiny_families: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[FamilyEngines]:
    opened = FamilyEngines(tiny_families, tmp_path_factory.mktemp("engines"))
    yield opened
    opened.close()
