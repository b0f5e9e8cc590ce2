"""The house keeps its rules; and each rule has been seen to catch a breach."""

from pathlib import Path

import pytest

from tests.support.architecture import find_violations

ROOT = Path(__file__).parents[2]
DOCSTRING = '"""A file."""\n'

VIOLATIONS = {
    "contracts imports the bus": ("contracts/order.py", "from bus.errors import PermanentError", "contracts must not import bus.errors"),
    "the bus imports an actor": ("bus/worker/consumer.py", "import actors.image", "bus must not import actors.image"),
    "the bus imports ops": ("bus/worker/consumer.py", "from ops import cli", "bus must not import ops.cli"),
    "an actor imports the gateway": ("actors/image.py", "from gateway.app import app", "actors must not import gateway.app"),
    "the gateway imports an actor": ("gateway/app.py", "from actors.image import ACTOR", "gateway must not import actors.image"),
    "the gateway imports one late": ("gateway/app.py", "def f():\n    import actors.image", "gateway must not import actors.image"),
    "a relative import": ("actors/image.py", "from .watermark import sign", "a relative import"),
    "actors know each other": ("actors/image.py", "from actors.watermark import sign", "image must not know the actor watermark"),
    "actors know each other by name": ("actors/image.py", "from actors import watermark", "image must not know the actor watermark"),
    "an adapter knows an actor": ("actors/adapters/queue.py", "import actors.image", "adapters must not know the actor image"),
    "an actor speaks AMQP": ("actors/image.py", "import aio_pika", "only the bus imports aio_pika"),
    "the gateway uses FastStream": ("gateway/app.py", "from faststream.rabbit import RabbitBroker", "only the bus imports faststream"),
    "ops speaks S3": ("ops/store.py", "def f():\n    import aioboto3", "only the bus imports aioboto3"),
    "the gateway opens a pool": ("gateway/app.py", "import asyncpg\nasyncpg.create_pool()", "only the bus opens the database"),
    "an actor opens a connection": ("actors/ledger.py", "from asyncpg import connect", "only the bus opens the database"),
    "torch in an actor": ("actors/image.py", "def f():\n    import torch", "only actors/engines and training import torch"),
    "torch in the gateway": ("gateway/app.py", "import torch", "only actors/engines and training import torch"),
    "torch at the top of an engine": ("actors/engines/sd.py", "from torch import nn", "only inside a function"),
    "diffusers at the top of an engine": ("actors/engines/sd.py", "if True:\n    import diffusers.utils", "only inside a function"),
    "os.environ in an actor": ("actors/image.py", "import os\nos.environ['X']", "read in a settings file"),
    "getenv in the gateway": ("gateway/app.py", "from os import getenv", "read in a settings file"),
    "a file of 401 lines": ("actors/image.py", "\n" * 400, "401 lines"),
    "a manager": ("actors/job_manager.py", "", "'manager' says nothing"),
    "a folder of utils": ("bus/utils/words.py", "", "'utils' says nothing"),
}


def test_source_tree_has_no_architecture_violation() -> None:
    assert find_violations(ROOT) == []


@pytest.mark.parametrize(("file", "code", "said"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_architecture_violation_is_reported(file: str, code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(DOCSTRING + code)

    found = find_violations(tmp_path)

    assert len(found) == 1
    assert found[0].startswith(f"{file}: ")
    assert said in found[0]


def test_module_without_docstring_is_reported(tmp_path: Path) -> None:
    (tmp_path / "bus").mkdir()
    (tmp_path / "bus" / "thing.py").write_text("x = 1\n")

    assert find_violations(tmp_path) == ["bus/thing.py: no docstring that says what the file is"]


def test_allowed_code_is_not_reported(tmp_path: Path) -> None:
    """Torch inside an engine's function or for types; the environment in a settings file; an actor with its own craft."""
    allowed = {
        "actors/engines/sd.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef open_sd():\n    import torch",
        "training/tiny_shapes.py": "def train():\n    import torch",
        "actors/engines/settings.py": "import os\nos.environ",
        "actors/image.py": "from actors.engines import sd\nfrom actors.pictures import chunks\nfrom asyncpg import Connection",
        "bus/persistence/pool.py": "import asyncpg\nasyncpg.create_pool()",
    }
    for file, code in allowed.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(DOCSTRING + code)

    assert find_violations(tmp_path) == []
