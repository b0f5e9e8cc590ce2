"""`atelier models`: makes the tiny models, fetches a model into the models folder, and lists that folder.

A model comes from the hub (`org/name`), an `s3://` or `gs://` prefix, one file over `https://`, or a folder; downloads are resumed.
"""

import asyncio
import hashlib
import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from actors.vision.model_files import cache_folder_name
from bus.errors import PermanentError, TemporaryError
from bus.storage.prefix_sync import COMPLETE_MARKER, sync_prefix
from ops.errors import SetupError

ProgressCallback = Callable[[int, int], None]
"""Receives the bytes done and the bytes in total."""
MAX_TRIES = 5


def make_models(arguments: Namespace) -> int:
    """`atelier models tiny`. Prints the path of each model as JSON."""
    from ops.local.tiny_models import make_tiny_families, make_tiny_models

    paths = make_tiny_models(arguments.folder.resolve(), force=arguments.force)
    if arguments.families:
        paths |= make_tiny_families(arguments.folder.resolve(), force=arguments.force)
    sys.stdout.write(json.dumps({name: str(path) for name, path in paths.items()}, indent=2) + "\n")
    return 0


def pull_model(arguments: Namespace) -> int:
    target = arguments.folder.expanduser().resolve() / (arguments.name or cache_folder_name(arguments.source))
    with Progress("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), transient=True) as progress:
        task = progress.add_task(arguments.source, total=None)
        try:
            fetch_model(arguments.source, target, arguments.sha256, lambda done, total: progress.update(task, completed=done, total=total))
        except (PermanentError, TemporaryError, httpx.HTTPError, OSError) as error:
            raise SetupError(
                f"{arguments.source} could not be fetched: {error}. Partial files are kept; run the command again to resume."
            ) from error
    model = describe_model(target)
    sys.stdout.write(json.dumps(model) + "\n" if arguments.json else f"{model['path']}  {model['bytes']:,} bytes\n")
    return 0


def fetch_model(source: str, target: Path, sha256: str | None, on_progress: ProgressCallback) -> None:
    """Fetch by the kind of `source`. Raises SetupError for one that is unknown or that the hub refuses."""
    if source.startswith(("s3://", "gs://")):
        target.parent.mkdir(parents=True, exist_ok=True)
        asyncio.run(sync_prefix(source, target, on_progress))
    elif source.startswith("https://") or (source.startswith("http://") and httpx.URL(source).host in {"127.0.0.1", "localhost"}):
        download(source, target / httpx.URL(source).path.rpartition("/")[2], sha256, on_progress)
    elif Path(source).expanduser().is_dir():
        copy_folder(Path(source).expanduser(), target, on_progress)
    elif source.count("/") == 1 and "://" not in source and not source.startswith((".", "/", "~")):
        download_from_hub(source, target)
    else:
        raise SetupError(f"{source!r} is neither an existing folder nor an s3://, gs:// or https:// URL, nor a hub id such as org/name.")


def download(url: str, target: Path, sha256: str | None, on_progress: ProgressCallback) -> None:
    """Download one file; resume a partial one where the server supports ranges. Raises PermanentError for a wrong checksum."""
    if target.exists() and (not sha256 or sha256_of(target) == sha256):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for attempt in range(MAX_TRIES):
        try:
            resume_download(url, part, on_progress)
            break
        except httpx.TransportError:
            if attempt == MAX_TRIES - 1:
                raise
    if sha256 and (actual := sha256_of(part)) != sha256:
        part.unlink()
        raise PermanentError("model-corrupt", f"its sha256 is {actual}, expected {sha256}; the partial file is removed")
    part.rename(target)


def resume_download(url: str, part: Path, on_progress: ProgressCallback) -> None:
    start = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        if response.status_code == 416:  # the file is complete already
            return
        response.raise_for_status()
        offset = start if response.status_code == 206 else 0
        total = offset + int(response.headers.get("content-length", 0))
        with part.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            for chunk in response.iter_bytes():
                file.write(chunk)
                on_progress(file.tell(), total)


def copy_folder(source: Path, target: Path, on_progress: ProgressCallback) -> None:
    files = [path for path in source.rglob("*") if path.is_file()]
    done, total = 0, sum(path.stat().st_size for path in files)
    for path in files:
        copy = target / path.relative_to(source)
        if not copy.exists() or sha256_of(copy) != sha256_of(path):
            copy.parent.mkdir(parents=True, exist_ok=True)
            part = copy.with_name(f"{copy.name}.part")
            shutil.copy2(path, part)
            part.rename(copy)
        done += path.stat().st_size
        on_progress(done, total)


def download_from_hub(name: str, target: Path) -> None:
    """The hub's library resumes, verifies and shows progress by itself."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise SetupError("Fetching from the hub needs the `models` extra: pip install 'atelier[models]'.") from error
    try:
        snapshot_download(name, local_dir=target)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise SetupError(f"the hub refuses {name}: {error}. Is the name right, is HF_TOKEN set where it is needed?") from error


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_models(arguments: Namespace) -> int:
    """`atelier models list`: the models in the folder, with those that are incomplete marked."""
    folder = arguments.folder.expanduser().resolve()
    paths = sorted(folder.iterdir()) if folder.exists() else []
    models = [describe_model(path) for path in paths if path.is_dir() and not path.name.startswith(".")]
    if arguments.json:
        sys.stdout.write(json.dumps(models, indent=2) + "\n")
    else:
        sys.stdout.write("".join(map(format_model, models)) or f"no models in {folder}\n")
    return 0


def format_model(model: dict[str, Any]) -> str:
    return f"{model['name']:40} {model['bytes']:>16,}  {'' if model['whole'] else 'incomplete'}\n"


def describe_model(path: Path) -> dict[str, Any]:
    files = [file for file in path.rglob("*") if file.is_file() and file.name != COMPLETE_MARKER]
    whole = not any(file.name.endswith((".part", ".incomplete")) for file in files)
    return {"name": path.name, "path": str(path), "bytes": sum(file.stat().st_size for file in files), "files": len(files), "whole": whole}
