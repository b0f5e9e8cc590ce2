"""`python -m tests.brokers`: the bus's tests and a short chaos on three generations of RabbitMQ, each out of the Debian that ships it.

A generation that is not this machine's own is unpacked by debootstrap into a folder of `.local/` and runs there in a chroot with its
own mounts. That needs root and Debian; where it cannot be had, a line says why and the generation is left out.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ops.local.install import search
from ops.settings import LocalSettings

BROKERS = {"3.10": "bookworm", "4.0": "trixie", "4.3": "forky"}
"""RabbitMQ's generation, and the Debian that has it."""

TESTS = (
    *("test_receive", "test_strangers", "test_request_reply", "test_inbox", "test_ledger", "test_poison", "test_dead_letters"),
    *("test_webhook_order", "test_image_order"),
)
SCRIPTS = Path("usr/lib/rabbitmq/bin")

WRAPPER = """\
#!/bin/sh
# Runs in the folder as if it were the machine, with mounts that end with the process.
exec unshare --mount --propagation private sh -c '
mount --rbind /proc {root}/proc && mount --rbind /dev {root}/dev && mkdir -p {root}{temporary} && mount --bind {temporary} {root}{temporary}
exec chroot {root} /{script} "$@"' {name} "$@"
"""


class Unobtainable(Exception):
    """This generation cannot be had here, and why."""


@dataclass(frozen=True)
class Tried:
    generation: str
    version: str
    passed: bool | None
    summary: str
    seconds: float = 0.0


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("brokers", description=__doc__)
    parser.add_argument("--broker", action="append", choices=list(BROKERS), help="only this one; may be said several times")
    parser.add_argument("--folder", type=Path, default=Path(".local/brokers"), help="where the brokers are unpacked")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    arguments = parser.parse_args(words)
    tried = [run(generation, arguments.folder.resolve()) for generation in arguments.broker or BROKERS]
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(one) for one in tried], indent=1) + "\n")
    else:
        Console().print(table_of(tried))
    return 1 if any(one.passed is False for one in tried) else 0


def run(generation: str, folder: Path) -> Tried:
    try:
        scripts = obtain(BROKERS[generation], folder)
        version = version_of(scripts)
    except (Unobtainable, subprocess.CalledProcessError, OSError) as error:
        said(f"RabbitMQ {generation} is left out: {error}")
        return Tried(generation, "none", None, f"left out: {error}")
    said(f"RabbitMQ {version}: the bus's tests and a short chaos …")
    files = [f"tests/integration/{name}.py" for name in TESTS] + ["tests/chaos/test_short.py"]
    began = time.monotonic()
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files],
        env=os.environ | {"ATELIER_RABBITMQ_PATH": str(scripts)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if tested.returncode:
        said(tested.stdout)
    return Tried(generation, version, tested.returncode == 0, tested.stdout.splitlines()[-1], round(time.monotonic() - began))


def obtain(suite: str, folder: Path) -> Path:
    """The folder of the broker's scripts. Raises Unobtainable."""
    own = search(LocalSettings())
    if own and suite == platform.freedesktop_os_release().get("VERSION_CODENAME"):
        return own.parent
    root, scripts = folder / suite, folder / f"{suite}-scripts"
    if not (root / SCRIPTS / "rabbitmq-server").exists():
        unpack(suite, root)
    scripts.mkdir(exist_ok=True)
    for name in ("rabbitmq-server", "rabbitmqctl"):
        script = scripts / name
        temporary = shlex.quote(tempfile.gettempdir())
        script.write_text(WRAPPER.format(root=shlex.quote(str(root)), temporary=temporary, script=SCRIPTS / name, name=name))
        script.chmod(0o755)
    return scripts


def unpack(suite: str, root: Path) -> None:
    if os.geteuid() or not shutil.which("debootstrap"):
        raise Unobtainable("it is unpacked by root, with debootstrap (apt-get install debootstrap)")
    said(f"Unpacking {suite} with its RabbitMQ, about two minutes …")
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    known = Path("/usr/share/debootstrap/scripts")
    like = known / (suite if (known / suite).exists() else "sid")
    command = ["debootstrap", "--variant=minbase", "--include=rabbitmq-server", suite, str(root), mirror(), str(like)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise Unobtainable(f"debootstrap of {suite} failed: {done.stdout.splitlines()[-1:]}")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")


def mirror() -> str:
    """Where this machine's own packages come from."""
    words = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Component: main"]
    sites = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    if not sites:
        raise Unobtainable("apt knows no mirror: run apt-get update")
    return Counter(sites).most_common(1)[0][0]


def version_of(scripts: Path) -> str:
    asked = subprocess.run([scripts / "rabbitmqctl", "version"], stdout=subprocess.PIPE, text=True, check=True)
    return asked.stdout.split()[-1]


def table_of(tried: Sequence[Tried]) -> Table:
    table = Table("RabbitMQ", "version", "tests", "seconds", box=None)
    for one in tried:
        table.add_row(one.generation, one.version, one.summary, f"{one.seconds:g}", style="" if one.passed else "red")
    return table


def said(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
