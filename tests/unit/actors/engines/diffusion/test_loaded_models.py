"""Models that cannot be loaded: they are not tried again for each order, and evict no model that others use."""

from pathlib import Path

import pytest

from actors.engines.diffusion.requests import DiffusionRequest
from bus.errors import PermanentError
from ops.local.tiny_models import make_tiny_families
from tests.support.engine_fixture import open_image_engine, run_to_end

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")]


def test_refused_model_is_loaded_once_and_displaces_no_other(tmp_path: Path) -> None:
    """First-block caching refuses a U-Net. The budget holds one model, so that each attempt to load it evicts the other."""
    families = make_tiny_families(tmp_path / "models")
    settings = {
        "models": {"flat": str(families["tiny-sd15"])},
        "block_cache_threshold": 0.1,
        "memory_budget_bytes": 800_000,
        "pinned": False,
    }
    engine = open_image_engine({"tiny-sd": families["tiny-flux"]}, tmp_path / "shm", **settings)
    engine.submit(1, DiffusionRequest("a cat", 1, model="flat", width=64, height=64))
    first = run_to_end(engine, [1])[1]
    loads = engine.models.cache.loads
    for number in (2, 3):
        order = DiffusionRequest("a cat", number, width=64, height=64, steps=1)
        engine.submit(number, order)
        run_to_end(engine, [number])
        with pytest.raises(PermanentError) as caught:
            engine.submit(10 + number, DiffusionRequest("a cat", 1, model="flat", width=64, height=64))
        assert caught.value.code == "block-cache-unsupported"
    engine.close()
    assert getattr(first, "code", "") == "block-cache-unsupported"
    assert engine.models.cache.loads - loads <= 1, "the model of the other orders is loaded again once"
