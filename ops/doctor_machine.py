"""What the doctor sees of this machine without asking anybody: Python, packages, model folders, device, room on the disk."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from actors.engines.settings import ImageSettings
from actors.seeing.settings import VlmSettings
from ops.findings import Check, judged
from ops.settings import LocalSettings

ROOM_NEEDED = 6 << 30
"""Bytes: the virtual environment with the models extra takes 3 GB, data and pictures the rest."""


def python(_: LocalSettings) -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return judged("python", None if sys.version_info >= (3, 11) else found, found, "install Python 3.11 or newer")


def packages(_: LocalSettings) -> Check:
    missing = [name for name in ("torch", "transformers", "diffusers", "peft") if find_spec(name) is None]
    trouble = f"not installed: {', '.join(missing)}" if missing else None
    return judged("models", trouble, "torch, transformers, diffusers, peft", "pip install -e '.[models]' --constraint constraints.txt")


def image_model(_: LocalSettings) -> Check:
    return model("image-model", "IMAGE_MODEL", ImageSettings().model, "model_index.json")


def seeing_model(_: LocalSettings) -> Check:
    settings = VlmSettings()
    if settings.engine == "openai":
        return Check("seeing-model", True, f"{settings.model}, on the server {settings.base_url}")
    return model("seeing-model", "VLM_MODEL", settings.model, "config.json")


def model(name: str, variable: str, wanted: str, mark: str) -> Check:
    """A folder must hold the model; a name is fetched from the hub at the first start."""
    if "://" in wanted or not wanted.startswith(("/", ".", "~")):
        return Check(name, True, f"{wanted}, fetched when the actor starts")
    folder = Path(wanted).expanduser()
    trouble = None if (folder / mark).is_file() else f"{folder} has no {mark}"
    return judged(name, trouble, str(folder), f"`atelier models tiny` makes small ones; or set {variable} to a model's folder or hub name")


def device(_: LocalSettings) -> Check:
    wanted = {ImageSettings().device, VlmSettings().device}
    found = shutil.which("nvidia-smi") is not None
    trouble = "a CUDA device is asked for, and no NVIDIA driver is here" if not found and any("cuda" in one for one in wanted) else None
    return judged(
        "device",
        trouble,
        "an NVIDIA driver" if found else "no GPU: models run on the CPU",
        "install the driver, or unset IMAGE_DEVICE and VLM_DEVICE",
    )


def room(settings: LocalSettings) -> Check:
    folder = settings.local_folder.resolve()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    said = f"{free / (1 << 30):.0f} GiB free"
    return judged("disk", None if free > ROOM_NEEDED else said, said, "make room: 6 GiB are needed")
