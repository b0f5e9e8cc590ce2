"""A model that a setting names is the one that is used: checkpoints with names of their own, and a language model server."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from PIL import Image

from ops.local.tiny_models import CHECKPOINTS, TINY_DIFFUSION, TINY_VLM, copy_checkpoint
from tests.support.fake_openai_server import open_fake_openai_server

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]

PAINTER, CRITIC, SLOGAN = "harbour-painter", "harbour-critic", "A quiet evening at sea"


def named_copy(source: str, folder: Path, name: str) -> str:
    copy_checkpoint(CHECKPOINTS / source, folder / name)
    return str(folder / name)


@asynccontextmanager
async def atelier(folder: Path, *arguments: str, **variables: str) -> AsyncIterator[Process]:
    """The command in a process of its own; standard error has its log."""
    environment = (
        os.environ | {"ATELIER_LOCAL_FOLDER": str(folder), "ATELIER_MAY_INSTALL": "false", "ATELIER_READY_SECONDS": "240"} | variables
    )
    command = [sys.executable, "-m", "ops.cli", *arguments]
    with (folder / "log.txt").open("wb") as log:
        output = log if arguments[0] == "demo" else STDOUT
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=PIPE, stderr=output, limit=1 << 22)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()


async def test_demo_uses_every_named_model() -> None:
    """The picture, the verdicts and the language model server say which model they are from."""
    with TemporaryDirectory(prefix="atelier-named-") as name:
        folder = Path(name)
        async with open_fake_openai_server() as server:
            server.respond = lambda _: SLOGAN
            variables = {
                "IMAGE_MODEL": named_copy(TINY_DIFFUSION, folder, PAINTER),
                "VLM_MODEL": named_copy(TINY_VLM, folder, CRITIC),
                "VLLM_SERVER_URL": server.url,
            }
            async with atelier(folder, "demo", "--ad", "--json", "--prompt", "a harbour", **variables) as process:
                output, _ = await process.communicate()
        assert process.returncode == 0, (folder / "log.txt").read_text()[-3000:]
        report = json.loads(output)
        with Image.open(report["image_path"]) as picture:
            assert PAINTER in picture.text["model"]  # type: ignore[attr-defined]
    assert report["ad"]["text"] == SLOGAN
    assert [Path(model).name for model in report["ad"]["seen_by"]] == [CRITIC]
    assert server.requests[0]["messages"][-1]["content"] == "a harbour"
    assert [(choice["use"], choice["source"].rpartition(", ")[2]) for choice in report["models"]] == [
        ("image", "IMAGE_MODEL"), ("vision", "VLM_MODEL"), ("text", "VLLM_SERVER_URL"),
    ]  # fmt: skip


async def test_up_names_the_models_at_start_and_loads_the_named_one() -> None:
    """One is named; the other is a toy that ships with Atelier."""
    lines: list[str] = []
    with TemporaryDirectory(prefix="atelier-named-") as name:
        folder = Path(name)
        model = named_copy(TINY_VLM, folder, CRITIC)
        async with atelier(folder, "up", "judge", "image", VLM_MODEL=model, IMAGE_WARM="false") as process:
            assert process.stdout is not None
            async with asyncio.timeout(500):
                async for line in process.stdout:
                    lines.append(line.decode(errors="replace").rstrip())
                    if '"model.loaded"' in lines[-1]:
                        break
    start = lines.index("Models:")
    assert lines[start + 1].split()[:2] == ["image", TINY_DIFFUSION]
    assert lines[start + 2].split() == ["vision", model, "(VLM_MODEL)"]
    assert [line for line in lines if "Loading LLaVa model" in line and CRITIC in line]
