"""The doctor's checks of this machine without its services: Python, packages, model folders, device, disk space."""

import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from actors.engines.settings import ImageSettings
from actors.imaging.fonts import shaping_problem
from actors.vision.settings import VlmSettings
from ops.settings import LocalSettings


@dataclass(frozen=True)
class Check:
    """The result of one check. `cure` is empty when it passed without a warning, which `ok` includes."""

    name: str
    ok: bool
    detail: str
    cure: str = ""
    warning: bool = False


DISK_BYTES_NEEDED = 6 << 30
"""The virtual environment with the models extra takes 3 GB; the rest is for data and pictures."""


def check_python(_: LocalSettings) -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return make_check("python", None if sys.version_info >= (3, 11) else version, version, "install Python 3.11 or newer")


def check_packages(_: LocalSettings) -> Check:
    missing = [name for name in ("torch", "transformers", "diffusers", "peft") if find_spec(name) is None]
    problem = f"not installed: {', '.join(missing)}" if missing else None
    return make_check("models", problem, "torch, transformers, diffusers, peft", "pip install -e '.[models]' --constraint constraints.txt")


def check_image_model(_: LocalSettings) -> Check:
    return check_model("image-model", "IMAGE_MODEL", ImageSettings().model, "model_index.json")


def check_vision_model(_: LocalSettings) -> Check:
    settings = VlmSettings()
    if settings.engine == "openai":
        return Check("seeing-model", True, f"{settings.model}, on the server {settings.base_url}")
    return check_model("seeing-model", "VLM_MODEL", settings.model, "config.json")


def check_model(name: str, variable: str, location: str, marker_file: str) -> Check:
    """A folder must contain the model; a hub id or URL is fetched when the actor starts."""
    if "://" in location or not location.startswith(("/", ".", "~")):
        return Check(name, True, f"{location}, fetched when the actor starts")
    folder = Path(location).expanduser()
    problem = None if (folder / marker_file).is_file() else f"{folder} has no {marker_file}"
    cure = f"`atelier models tiny` makes small ones; or set {variable} to a model's folder or hub name"
    return make_check(name, problem, str(folder), cure)


def check_device(_: LocalSettings) -> Check:
    needs_cuda = any("cuda" in device for device in (ImageSettings().device, VlmSettings().device))
    has_driver = shutil.which("nvidia-smi") is not None
    problem = "a CUDA device is configured, and no NVIDIA driver is installed" if needs_cuda and not has_driver else None
    detail = "an NVIDIA driver" if has_driver else "no GPU: models run on the CPU"
    return make_check("device", problem, detail, "install the driver, or unset IMAGE_DEVICE and VLM_DEVICE")


def check_shaping(_: LocalSettings) -> Check:
    """Needed by the steps watermark and overlay, which do not start without it."""
    problem, cure = (shaping_problem() or ". ").split(". ", 1)
    return make_check("shaping", problem or None, "names are shaped by raqm with FriBiDi", cure)


def check_disk_space(settings: LocalSettings) -> Check:
    folder = settings.local_folder.resolve()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    detail = f"{free / (1 << 30):.0f} GiB free"
    return make_check("disk", None if free > DISK_BYTES_NEEDED else detail, detail, "free some space: 6 GiB are needed")


def make_check(name: str, problem: str | None, detail: str, cure: str) -> Check:
    return Check(name, problem is None, problem or detail, cure if problem else "")
