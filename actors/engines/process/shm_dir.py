"""The folder for parcels: in memory where the system has such a one. What a killed process left behind is swept away by the next."""

import os
import shutil
import socket
import tempfile
from pathlib import Path


def create_shm_dir(root: Path | None = None) -> Path:
    """A fresh folder. Its name says whose it is, since only a process that is gone on this very host may be swept up after."""
    root = root or shm_root()
    ours = f"atelier-{socket.gethostname()}-"
    for left in root.glob(f"{ours}*"):
        owner = left.name.removeprefix(ours).partition("-")[0]
        if owner.isdigit() and not process_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{ours}{os.getpid()}-", dir=root))


def shm_root() -> Path:
    shared = Path("/dev/shm")  # noqa: S108 - the folder made in it is ours alone
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


def process_exists(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
