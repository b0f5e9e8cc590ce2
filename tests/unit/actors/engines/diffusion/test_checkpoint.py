"""Checkpoints on disk: their sha256, their local copies, and the detection of network disks."""

from pathlib import Path

from actors.engines.diffusion.checkpoint import copy_to_local_cache, on_network_filesystem, weights_sha256

MOUNTS = "overlay / overlay rw 0 0\nserver:/models /mnt/models nfs4 rw 0 0\n/dev/sda /mnt/models/local ext4 rw 0 0\n"


def checkpoint(folder: Path, content: bytes = b"weights") -> Path:
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(content)
    (folder / "model_index.json").write_text("{}")
    return folder


def test_checkpoint_hash_follows_content(tmp_path: Path) -> None:
    one, same, other = checkpoint(tmp_path / "1"), checkpoint(tmp_path / "2"), checkpoint(tmp_path / "3", b"others")
    assert weights_sha256(one) == weights_sha256(same) != weights_sha256(other)


def test_local_copy_is_made_once_per_content(tmp_path: Path) -> None:
    origin, cache = checkpoint(tmp_path / "origin"), tmp_path / "cache"
    first = copy_to_local_cache(origin, cache)
    assert (first / "unet" / "model.safetensors").read_bytes() == b"weights"
    assert copy_to_local_cache(origin, cache) == first
    (origin / "unet" / "model.safetensors").write_bytes(b"changed")
    assert copy_to_local_cache(origin, cache) != first
    assert (first / "unet" / "model.safetensors").read_bytes() == b"weights"
    assert len(list((cache / "models").iterdir())) == 2


def test_innermost_mount_decides_whether_a_path_is_on_a_network_disk() -> None:
    assert on_network_filesystem(Path("/mnt/models/sd"), MOUNTS)
    assert not on_network_filesystem(Path("/mnt/models/local/sd"), MOUNTS)
    assert not on_network_filesystem(Path("/home/sd"), MOUNTS)
