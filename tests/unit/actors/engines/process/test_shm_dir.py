"""The folder for parcels."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from actors.engines.process.shm_dir import create_shm_dir


def test_shm_dir_of_dead_process_is_removed_and_live_one_kept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    left, used, foreign = (
        tmp_path / name for name in (f"atelier-{host}-{gone.pid}-x", f"atelier-{host}-{os.getppid()}-x", f"atelier-other-{gone.pid}-x")
    )
    for folder in (left, used, foreign):
        folder.mkdir()
    fresh = create_shm_dir(tmp_path)
    assert set(tmp_path.iterdir()) == {used, foreign, fresh}
