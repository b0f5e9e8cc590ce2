"""One tiny checkpoint and one engine for each family of vision models."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.engines.language.tiny_vision import write_tiny_vision
from actors.engines.language.vision_model import VlmEngine
from tests.support.vision_families import FAMILY_NAMES, open_family


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each family."""
    root = tmp_path_factory.mktemp("families")
    for name in FAMILY_NAMES:
        write_tiny_vision(name, root / name)
    return {name: root / name for name in FAMILY_NAMES}


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def engine(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Iterator[VlmEngine]:
    engine = open_family(checkpoints[request.param])
    yield engine
    engine.close()
