"""The folder for parcels."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from actors.engines.spool import open_spool


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    left, used, foreign = (
        tmp_path / name for name in (f"atelier-{host}-{gone.pid}-x", f"atelier-{host}-{os.getppid()}-x", f"atelier-other-{gone.pid}-x")
    )
    for folder in (left, used, foreign):
        folder.mkdir()
    fresh = open_spool(tmp_path)
    assert set(tmp_path.iterdir()) == {used, foreign, fresh}
