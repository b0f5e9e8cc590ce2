"""Checkpoints on the disk: where they lie, how large they are, which bytes they are, and a local copy of what lies on a network disk."""

import hashlib
import os
import shutil
from pathlib import Path

import structlog

log = structlog.get_logger()

WEIGHT_SUFFIXES = (".safetensors", ".bin")
NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "fuse.gcsfuse", "fuse.s3fs", "fuse.sshfs")


def find_checkpoint(name: str) -> Path | None:
    """The folder of a checkpoint: a folder as it is, a hub id by its snapshot in the hub's cache. None: it is not on this disk."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def weight_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in WEIGHT_SUFFIXES and file.is_file())


def weights_size_bytes(folder: Path) -> int:
    """What the weights will take in memory, about: their size on the disk."""
    return sum(file.stat().st_size for file in weight_files(folder))


def weights_sha256(folder: Path) -> str:
    """One sha256 for a checkpoint: over the names and the sha256s of its weight files."""
    whole = hashlib.sha256()
    for file in weight_files(folder):
        whole.update(f"{file.relative_to(folder)}\0{file_sha256(file)}\n".encode())
    return whole.hexdigest()


def file_sha256(file: Path) -> str:
    """The hub's cache names its blobs by their sha256, so that they need not be read again."""
    name = file.resolve().name
    if len(name) == 64 and set(name) <= set("0123456789abcdef"):
        return name
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def on_network_filesystem(path: Path, mounts: str | None = None) -> bool:
    """Whether reading a mapped file would go over the network, which is many times slower than copying it once."""
    if mounts is None:
        table = Path("/proc/mounts")
        mounts = table.read_text() if table.exists() else ""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, where, what, *_ = line.split()
        if path.resolve().is_relative_to(where) and len(where) >= len(best):
            best, kind = where, what
    return kind in NETWORK_FILESYSTEMS


def copy_to_local_cache(folder: Path, cache_dir: Path) -> Path:
    """A copy under a name made of its content. It is never written over: another content has another name."""
    name = weights_sha256(folder)
    target = cache_dir.expanduser() / "models" / name
    if not target.exists():
        fresh = target.with_name(f".{name}.{os.getpid()}")
        shutil.copytree(folder, fresh, dirs_exist_ok=True)
        try:
            fresh.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)
        log.info("weights.copied", origin=str(folder), path=str(target))
    return target
