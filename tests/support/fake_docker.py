"""A checkout with the scripts of ops/ and a fake docker on PATH, which records its calls. Files in the checkout make it fail."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ops.docgen.generate import ROOT

FAKE_DOCKER = """#!/usr/bin/env bash
echo "$*" >> "$HERE/called"
case "$*" in
  "info --format"*) cat "$HERE/runtimes" ;;
  info) [ ! -e "$HERE/no-daemon" ] ;;
  "compose version") [ ! -e "$HERE/no-compose" ] ;;
  "compose pull"*) [ ! -e "$HERE/no-network" ] ;;
  *build) [ ! -e "$HERE/no-build" ] ;;
  "compose up"*) grep "^COMPOSE_" .env > "$HERE/compose"; true ;;
  "compose ps --services") [ -e "$HERE/no-containers" ] || echo gateway ;;
  "compose ps"*) echo "gateway running $(cat "$HERE/health")"; echo "prepare exited " ;;
  "compose exec"*) [ ! -e "$HERE/no-page" ] ;;
  *"operator doctor"*) echo "doctor ran"; [ ! -e "$HERE/dead-server" ] ;;
esac
"""

PROGRAMS = ("bash", "sed", "dirname", "od", "tr", "cat", "mv", "grep", "sleep", "head", "tail", "env")
SCRIPTS = ("quick_start.sh", "verify_system.sh")


@dataclass(frozen=True)
class FakeCheckout:
    """`folder` has nothing but the scripts and .env.example; its `bin` is the whole PATH."""

    folder: Path

    def run(self, *arguments: str, script: str = "quick_start.sh") -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": str(self.folder / "bin"), "HERE": str(self.folder), "QUICK_START_PAUSE": "0"}
        environment |= {"LANG": os.environ.get("LANG", "C")}
        command = [str(self.folder / "ops" / script), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)

    def write_program(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def install_gpu(self, *, runtime: bool = True) -> None:
        self.write_program("nvidia-smi", "#!/usr/bin/env bash\necho 'GPU 0: H200'\n")
        (self.folder / "runtimes").write_text('{"nvidia":{}}' if runtime else '{"runc":{}}')

    @property
    def docker_calls(self) -> list[str]:
        return (self.folder / "called").read_text().splitlines()

    @property
    def compose_names(self) -> dict[str, str]:
        """The names that Compose reads from .env, as they were when the services were started."""
        return dict(line.split("=", 1) for line in (self.folder / "compose").read_text().splitlines())


def make_fake_checkout(folder: Path) -> FakeCheckout:
    (folder / "ops").mkdir()
    for script in SCRIPTS:
        shutil.copy(ROOT / "ops" / script, folder / "ops")
    shutil.copy(ROOT / ".env.example", folder)
    (folder / "bin").mkdir()
    (folder / "health").write_text("healthy")
    (folder / "runtimes").write_text('{"runc":{}}')
    for name in PROGRAMS:
        (folder / "bin" / name).symlink_to(str(shutil.which(name)))
    checkout = FakeCheckout(folder)
    checkout.write_program("docker", FAKE_DOCKER)
    return checkout
