"""The folder for output files, in shared memory where the system has it. Folders of processes that were killed are removed by the next."""

import os
import shutil
import socket
import tempfile
from pathlib import Path


def create_shm_dir(root: Path | None = None) -> Path:
    """A new folder, named after the host and the process: only folders of dead processes on this host are removed."""
    root = root or shm_root()
    prefix = f"atelier-{socket.gethostname()}-"
    for folder in root.glob(f"{prefix}*"):
        owner = folder.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not process_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=root))


def shm_root() -> Path:
    shared_memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a private folder in it
    return shared_memory if shared_memory.is_dir() else Path(tempfile.gettempdir())


def process_exists(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_outputs(files: tuple[Path, ...]) -> list[bytes]:
    """Read the output files and delete them."""
    outputs = [file.read_bytes() for file in files]
    delete_outputs(files)
    return outputs


def delete_outputs(files: tuple[Path, ...]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
