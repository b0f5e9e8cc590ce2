"""What the doctor sees of this machine without asking anybody: Python, packages, model folders, device, room on the disk."""

import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from actors.engines.settings import ImageSettings
from actors.vision.settings import VlmSettings
from ops.settings import LocalSettings


@dataclass(frozen=True)
class Check:
    """`cure` is empty where nothing is wrong."""

    name: str
    ok: bool
    detail: str
    cure: str = ""


DISK_BYTES_NEEDED = 6 << 30
"""Bytes: the virtual environment with the models extra takes 3 GB, data and pictures the rest."""


def check_python(_: LocalSettings) -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return make_check("python", None if sys.version_info >= (3, 11) else found, found, "install Python 3.11 or newer")


def check_packages(_: LocalSettings) -> Check:
    missing = [name for name in ("torch", "transformers", "diffusers", "peft") if find_spec(name) is None]
    trouble = f"not installed: {', '.join(missing)}" if missing else None
    return make_check("models", trouble, "torch, transformers, diffusers, peft", "pip install -e '.[models]' --constraint constraints.txt")


def check_image_model(_: LocalSettings) -> Check:
    return check_model("image-model", "IMAGE_MODEL", ImageSettings().model, "model_index.json")


def check_vision_model(_: LocalSettings) -> Check:
    settings = VlmSettings()
    if settings.engine == "openai":
        return Check("seeing-model", True, f"{settings.model}, on the server {settings.base_url}")
    return check_model("seeing-model", "VLM_MODEL", settings.model, "config.json")


def check_model(name: str, variable: str, location: str, marker_file: str) -> Check:
    """A folder must hold the model; a name is fetched from the hub at the first start."""
    if "://" in location or not location.startswith(("/", ".", "~")):
        return Check(name, True, f"{location}, fetched when the actor starts")
    folder = Path(location).expanduser()
    trouble = None if (folder / marker_file).is_file() else f"{folder} has no {marker_file}"
    return make_check(
        name, trouble, str(folder), f"`atelier models tiny` makes small ones; or set {variable} to a model's folder or hub name"
    )


def check_device(_: LocalSettings) -> Check:
    wanted = {ImageSettings().device, VlmSettings().device}
    found = shutil.which("nvidia-smi") is not None
    trouble = "a CUDA device is asked for, and no NVIDIA driver is here" if not found and any("cuda" in one for one in wanted) else None
    return make_check(
        "device",
        trouble,
        "an NVIDIA driver" if found else "no GPU: models run on the CPU",
        "install the driver, or unset IMAGE_DEVICE and VLM_DEVICE",
    )


def check_disk_space(settings: LocalSettings) -> Check:
    folder = settings.local_folder.resolve()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    said = f"{free / (1 << 30):.0f} GiB free"
    return make_check("disk", None if free > DISK_BYTES_NEEDED else said, said, "make room: 6 GiB are needed")


def make_check(name: str, problem: str | None, detail: str, cure: str) -> Check:
    return Check(name, problem is None, problem or detail, cure if problem else "")
