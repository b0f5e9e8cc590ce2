"""Tiny checkpoints for the tests on a CUDA device."""

from pathlib import Path

import pytest

from ops.local.tiny_models import make_tiny_models


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_tiny_models(tmp_path_factory.mktemp("models"))
