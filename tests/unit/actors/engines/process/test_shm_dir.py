"""The folder for output files."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from actors.engines.process.shm_dir import create_shm_dir


def test_shm_dir_of_dead_process_is_removed_and_live_one_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    names = (f"atelier-{host}-{dead.pid}-x", f"atelier-{host}-{os.getppid()}-x", f"atelier-other-{dead.pid}-x")
    abandoned, used, of_other_host = (tmp_path / name for name in names)
    for folder in (abandoned, used, of_other_host):
        folder.mkdir()
    created = create_shm_dir(tmp_path)
    assert set(tmp_path.iterdir()) == {used, of_other_host, created}
