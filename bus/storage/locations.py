"""Where a store lies, a folder or a prefix of a bucket, and which of its keys an address names."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""Not an ARN, which may name any bucket by way of an access point."""
MAX_PATH_CHARS = 4096
"""A longer path cannot be opened, and each of its folders would cost a look at the disk."""


class Location(Protocol):
    @property
    def uri(self) -> str:
        """The address of the store."""
        ...

    def key_of(self, uri: str) -> str | None:
        """The key that the address names; None for an address outside the store. It may read the file system."""
        ...


@dataclass(frozen=True)
class FolderLocation:
    root: Path

    @property
    def uri(self) -> str:
        return self.root.as_uri()

    def key_of(self, uri: str) -> str | None:
        """Symbolic links are resolved. Folders are compared by their inodes too: one may have several names."""
        path, root = file_path(uri), self.root.resolve()
        if path is None:
            return None
        for folder in (path, *path.parents):
            if folder == root or is_same_folder(folder, root):
                return path.relative_to(folder).as_posix()
        return None


@dataclass(frozen=True)
class BucketLocation:
    """`prefix`: "", or a path that ends in a slash. `scheme`: s3, or gs for Google Cloud Storage."""

    bucket: str
    prefix: str = ""
    scheme: str = "s3"

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}"

    def key_of(self, uri: str) -> str | None:
        return uri.removeprefix(self.uri) if uri.startswith(self.uri) and has_plain_path(uri.removeprefix(f"{self.scheme}://")) else None


def parse_location(url: str) -> FolderLocation | BucketLocation:
    """The location of `file:///folder`, `s3://bucket` or `s3://bucket/prefix`."""
    return parse_bucket(url) if url.startswith("s3://") else FolderLocation(Path(unquote(urlsplit(url).path)))


def parse_bucket(name: str) -> BucketLocation:
    """The location of `bucket`, `bucket/prefix`, `s3://bucket/prefix` or `gs://bucket/prefix`, as ASSET_BUCKETS names it."""
    scheme = "gs" if name.startswith("gs://") else "s3"
    bucket, _, prefix = name.removeprefix(f"{scheme}://").partition("/")
    return BucketLocation(bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else "", scheme)


def file_path(uri: str) -> Path | None:
    """The resolved path of a `file://` address; None for any other address, and for one of another machine."""
    try:
        url = urlsplit(uri.replace("?", "%3F").replace("#", "%23"))
        path = unquote(url.path)
        if url.scheme != "file" or url.netloc not in ("", "localhost") or "\0" in path or len(path) > MAX_PATH_CHARS:
            return None
        return Path(path).resolve()
    except (ValueError, OSError, RuntimeError):  # No URL, not a name of this file system, or a loop of symbolic links.
        return None


def has_plain_path(path: str) -> bool:
    """Whether no segment is empty, `.` or `..`. Some servers collapse such segments, so that a prefix would not bound the key."""
    return not {"", ".", ".."} & set(path.split("/"))


def is_same_folder(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
