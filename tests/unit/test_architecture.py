"""The packages obey the architecture rules, and each rule is shown to find a violation."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.architecture import MIN_LINES, find_violations
from tests.support.vocabulary import find_retired_words

ROOT = Path(__file__).parents[2]
DOCSTRING = '"""A file."""\n'
FILLING = "\n" * MIN_LINES

VIOLATIONS = {
    "contracts imports the bus": ("contracts/order.py", "from bus.errors import PermanentError", "contracts must not import bus.errors"),
    "the bus imports an actor": ("bus/retry.py", "import actors.image", "bus must not import actors.image"),
    "the bus imports ops": ("bus/retry.py", "from ops import cli", "bus must not import ops.cli"),
    "an actor imports the gateway": ("actors/image.py", "from gateway.app import app", "actors must not import gateway.app"),
    "the gateway imports an actor": ("gateway/app.py", "from actors.image import ACTOR", "gateway must not import actors.image"),
    "the gateway imports one late": ("gateway/app.py", "def f():\n    import actors.image", "gateway must not import actors.image"),
    "the product imports a benchmark": ("ops/cli.py", "from benchmarks import bus", "ops must not import benchmarks.bus"),
    "an example imports the product": ("examples/hints/app.py", "from contracts import text", "examples must not import contracts.text"),
    "an example has a heavy library": (
        "examples/hints/app.py",
        "import fastapi",
        "openai, pydantic and not fastapi",
    ),
    "a relative import": ("actors/image.py", "from .watermark import sign", "a relative import"),
    "actors import each other": ("actors/image.py", "from actors.watermark import sign", "image must not import the actor watermark"),
    "actors import each other by name": ("actors/image.py", "from actors import watermark", "image must not import the actor watermark"),
    "an adapter imports an actor": ("actors/adapters/queue.py", "import actors.image", "adapters must not import the actor image"),
    "an actor speaks AMQP": ("actors/image.py", "import aio_pika", "only the bus imports aio_pika"),
    "the gateway uses FastStream": ("gateway/app.py", "from faststream.rabbit import RabbitBroker", "only the bus imports faststream"),
    "ops speaks S3": ("ops/up.py", "def f():\n    import aioboto3", "only the bus imports aioboto3"),
    "the gateway opens a pool": ("gateway/app.py", "import asyncpg\nasyncpg.create_pool()", "only the bus opens the database"),
    "an actor opens a connection": ("actors/ledger.py", "from asyncpg import connect", "only the bus opens the database"),
    "torch in an actor": ("actors/image.py", "def f():\n    import torch", "only actors/engines, training and benchmarks import torch"),
    "torch in the gateway": ("gateway/app.py", "import torch", "only actors/engines, training and benchmarks import torch"),
    "torch at the top of an engine": ("actors/engines/vllm/sd.py", "from torch import nn", "only inside a function"),
    "diffusers at the top of an engine": ("actors/engines/vllm/sd.py", "if True:\n    import diffusers.utils", "only inside a function"),
    "os.environ in an actor": ("actors/image.py", "import os\nos.environ['X']", "read in a settings module"),
    "getenv in the gateway": ("gateway/app.py", "from os import getenv", "read in a settings module"),
    "settings in a constant": (
        "actors/image.py",
        "from x import S3Settings\nS = S3Settings()",
        "S3Settings is read when",
    ),
    "settings in a call": ("actors/image.py", "ACTOR = actor(x.ImageSettings().rows)", "ImageSettings is read when"),
    "settings in a class": ("bus/retry.py", "class A:\n    s = BusSettings()", "BusSettings is read when"),
    "settings as a default": ("bus/retry.py", "def f(s=BusSettings()):\n    return s", "BusSettings is read when"),
    "a module beside the sub-packages": ("bus/letters.py", "", "bus/ has no place for letters.py"),
    "a folder outside the layout": ("gateway/pages/home.py", "", "gateway/pages/ is outside the layout"),
    "a file of 401 lines": ("actors/image.py", "\n" * 400, "401 lines"),
    "a manager": ("actors/llm/job_manager.py", "", "'manager' says nothing"),
    "a retired word in a name": ("bus/retry.py", "def bury_it():\n    return 1", "'bury' is retired; say 'dead-letter'"),
    "a retired word in a class": ("bus/retry.py", "class MyCabinet:\n    x = 1", "'Cabinet' is retired"),
    "a retired word in a comment": ("bus/retry.py", "x = 1  # as the caretaker wants", "'caretaker' is retired"),
    "a retired word in a test": ("tests/unit/test_x.py", "def test_who_is_told():\n    assert True", "'told' is retired"),
}


def test_packages_obey_the_rules() -> None:
    assert find_violations(ROOT) == []


@pytest.mark.parametrize(("file", "code", "message"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_violation_is_found(file: str, code: str, message: str, tmp_path: Path) -> None:
    actors = {"actors/watermark.py": DOCSTRING + FILLING, "actors/image.py": DOCSTRING + FILLING}
    write_files(tmp_path, actors | {file: DOCSTRING + code + ("" if code.startswith("\n") else FILLING)})

    violations = find_violations(tmp_path)

    assert len(violations) == 1
    assert violations[0].startswith(f"{file}: ")
    assert message in violations[0]


def test_missing_docstring_and_short_module_are_found(tmp_path: Path) -> None:
    write_files(tmp_path, {"bus/retry.py": "x = 1\n"})

    assert find_violations(tmp_path) == [
        "bus/retry.py: no docstring that says what the file is",
        "bus/retry.py: 1 lines; merge it into its neighbour, or add it to tests/support/layout.py",
    ]


def test_permitted_code_has_no_violation(tmp_path: Path) -> None:
    """Torch inside a function or for types; the environment in settings; settings inside a function; an actor with a package of actors/."""
    permitted = {
        "actors/engines/vllm/sd.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import torch",
        "training/painter.py": "def train():\n    import torch",
        "actors/engines/settings.py": "import os\nos.environ",
        "actors/image.py": "from actors.imaging import fonts\nfrom asyncpg import Connection\ndef f():\n    return ImageSettings()",
        "bus/persistence/pool.py": "import asyncpg\nasyncpg.create_pool()",
        "bus/dead_letters/record.py": 'row["said"] = "--leash and /workshop"',
    }
    write_files(tmp_path, {file: DOCSTRING + code + FILLING for file, code in permitted.items()})

    assert find_violations(tmp_path) == []


def write_files(root: Path, texts: dict[str, str]) -> None:
    for file, text in texts.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)


PROSE = re.compile(r".*\.(md|html|css|js|sql|sh|yml|yaml|toml)$|(.*/)?(Makefile|Dockerfile|\.env\.example)$")
QUOTED = re.compile(r"tests/golden/|docs/(schemas|asyncapi)|gateway/docs/asyncapi|.*package-lock|gateway/console/static/htmx")
"""Released messages and documents made from them, and other people's files."""


def test_documents_pages_and_queries_use_no_retired_word() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    files = [Path(name) for name in listed if PROSE.match(name) and not QUOTED.match(name) and (ROOT / name).is_file()]
    assert len(files) > 50
    assert [f"{file}: {found}" for file in files for found in find_retired_words(file, (ROOT / file).read_text())] == []
