"""Checkpoints on disk: their location, size and sha256, and a local copy of those on a network disk."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import structlog

log = structlog.get_logger()

WEIGHT_SUFFIXES = (".safetensors", ".bin")
NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "fuse.gcsfuse", "fuse.s3fs", "fuse.sshfs")


def find_checkpoint(name: str, index: str = "model_index.json") -> Path | None:
    """The folder of a checkpoint: `name` itself, or the snapshot of a hub id in the hub's cache, if it has the file `index`.

    None: it is not on this disk. A snapshot may lack files that nobody needs.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except HFValidationError:
        return None
    except LocalEntryNotFoundError as error:
        folder = Path(getattr(error, "snapshot_path", ""))
    return folder if (folder / index).is_file() else None


def download_index(name: str) -> Path:
    """The folder in the hub's cache with the model_index.json of a hub id, downloaded before any weights."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, "model_index.json")).parent


def has_parts(folder: Path, parts: Iterable[str]) -> bool:
    """Whether there is a folder of each part, and weights in those of models; a download that was interrupted leaves some out."""
    folders = [folder / part for part in parts]
    return all(part.is_dir() and (bool(weight_files(part)) or not (part / "config.json").is_file()) for part in folders)


def weight_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in WEIGHT_SUFFIXES and file.is_file())


def weights_sha256(folder: Path) -> str:
    """One sha256 for a checkpoint: over the names and the sha256s of its weight files."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        digest.update(f"{file.relative_to(folder)}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def file_sha256(file: Path) -> str:
    """The sha256 of a file. The hub's cache names its blobs by it, so that these are not read."""
    name = file.resolve().name
    if len(name) == 64 and set(name) <= set("0123456789abcdef"):
        return name
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def on_network_filesystem(path: Path, mounts: str | None = None) -> bool:
    """Whether `path` is on a network filesystem, where reading a mapped file is many times slower than copying it once."""
    if mounts is None:
        table = Path("/proc/mounts")
        mounts = table.read_text() if table.exists() else ""
    innermost, filesystem = "", ""
    for line in mounts.splitlines():
        _, mount_point, kind, *_ = line.split()
        if path.resolve().is_relative_to(mount_point) and len(mount_point) >= len(innermost):
            innermost, filesystem = mount_point, kind
    return filesystem in NETWORK_FILESYSTEMS


def copy_to_local_cache(folder: Path, cache_dir: Path) -> Path:
    """A copy that is named by the sha256 of the weights, so that it is never overwritten."""
    name = weights_sha256(folder)
    target = cache_dir.expanduser() / "models" / name
    if not target.exists():
        temporary = target.with_name(f".{name}.{os.getpid()}")
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        try:
            temporary.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
        log.info("weights.copied", origin=str(folder), path=str(target))
    return target
