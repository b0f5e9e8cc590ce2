"""Checkpoints on the disk: named by their content, copied once, never written over."""

from pathlib import Path

from actors.engines.weights import copy_local, on_network_disk, weight_bytes, weights_sha256

MOUNTS = "overlay / overlay rw 0 0\nserver:/models /mnt/models nfs4 rw 0 0\n/dev/sda /mnt/models/local ext4 rw 0 0\n"


def checkpoint(folder: Path, content: bytes = b"weights") -> Path:
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(content)
    (folder / "model_index.json").write_text("{}")
    return folder


def test_the_name_of_a_checkpoint_follows_its_content(tmp_path: Path) -> None:
    one, same, other = checkpoint(tmp_path / "1"), checkpoint(tmp_path / "2"), checkpoint(tmp_path / "3", b"others")
    assert weights_sha256(one) == weights_sha256(same) != weights_sha256(other)
    assert weight_bytes(one) == 7


def test_a_local_copy_is_made_once_and_another_content_gets_another_place(tmp_path: Path) -> None:
    origin, cache = checkpoint(tmp_path / "origin"), tmp_path / "cache"
    first = copy_local(origin, cache)
    assert (first / "unet" / "model.safetensors").read_bytes() == b"weights"
    assert copy_local(origin, cache) == first
    (origin / "unet" / "model.safetensors").write_bytes(b"changed")
    assert copy_local(origin, cache) != first
    assert (first / "unet" / "model.safetensors").read_bytes() == b"weights"
    assert len(list((cache / "models").iterdir())) == 2


def test_the_innermost_mount_decides_whether_a_disk_is_of_the_network() -> None:
    assert on_network_disk(Path("/mnt/models/sd"), MOUNTS)
    assert not on_network_disk(Path("/mnt/models/local/sd"), MOUNTS)
    assert not on_network_disk(Path("/home/sd"), MOUNTS)
