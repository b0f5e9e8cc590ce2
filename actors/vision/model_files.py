"""Locates a model's files: a local folder, a hub id, or a bucket that is copied once into `MODEL_DIR`."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from actors.vision.settings import VlmSettings
from bus.storage.prefix_sync import OnProgress, sync_prefix

log = structlog.get_logger()


async def ensure_local_model(settings: VlmSettings) -> str:
    """The folder for the engine to open, or a hub id, which it caches in `MODEL_DIR`.

    Raises PermanentError("model-missing" · "model-corrupt"), TemporaryError while the bucket is unavailable.
    """
    if not settings.model.startswith(("s3://", "gs://")):
        return settings.model
    folder = settings.model_dir.expanduser() / cache_folder_name(settings.model)
    with show_copy_progress(settings.model) as on_progress:
        await sync_prefix(settings.model, folder, on_progress)
    return str(folder)


def cache_folder_name(url: str) -> str:
    """The last part of the address, readable, with a hash that makes it unique."""
    last = url.rstrip("/").rpartition("/")[2] or "model"
    return f"{last}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"


@contextmanager
def show_copy_progress(url: str) -> Iterator[OnProgress]:
    """A progress bar on a terminal; else a log event at every tenth."""
    if not sys.stderr.isatty():
        yield CopyProgressLog(url)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(url, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class CopyProgressLog:
    """Logs the progress of a copy at every tenth."""

    def __init__(self, url: str) -> None:
        self._url, self._last_tenth = url, -1

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if tenth > self._last_tenth:
            self._last_tenth = tenth
            log.info("model.copied", url=self._url, percent=10 * tenth, bytes=done, file=Path(self._url).name)
