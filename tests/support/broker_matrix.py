"""`python -m tests.support.broker_matrix`: the tests of the bus and a short chaos run on three RabbitMQ series.

Each series comes from the Debian release that ships it. One that is not this machine's own is unpacked by debootstrap into a folder of
`.local/` and runs there in a chroot with its own mounts. That needs root and Debian; where a series is unavailable it is skipped, with
the reason.
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

from ops.local.rabbitmq_install import find_server_script
from ops.settings import LocalSettings

DEBIAN_RELEASES = {"3.10": "bookworm", "4.0": "trixie", "4.3": "forky"}
"""RabbitMQ series, and the Debian release that ships it."""

BROKER_TESTS = (
    *(
        "test_consumer",
        "test_consumer_fuzz",
        "test_request_reply",
        "test_inbox",
        "test_ledger",
        "test_poison_messages",
        "test_dead_letters",
    ),
    *("test_webhook_order", "test_image_order"),
)
SCRIPTS = Path("usr/lib/rabbitmq/bin")

CHROOT_WRAPPER = """\
#!/bin/sh
# Runs in the folder as its root, with mounts that end with the process.
exec unshare --mount --propagation private sh -c '
mount --rbind /proc {root}/proc && mount --rbind /dev {root}/dev && mkdir -p {root}{temporary} && mount --bind {temporary} {root}{temporary}
exec chroot {root} /{script} "$@"' {name} "$@"
"""


class BrokerUnavailable(Exception):
    """This RabbitMQ series cannot be installed here, and why."""


@dataclass(frozen=True)
class BrokerResult:
    generation: str
    version: str
    passed: bool | None
    summary: str
    seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("brokers", description=__doc__)
    parser.add_argument("--broker", action="append", choices=list(DEBIAN_RELEASES), help="only this one; may be repeated")
    parser.add_argument("--folder", type=Path, default=Path(".local/brokers"), help="where the brokers are unpacked")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    arguments = parser.parse_args(arguments)
    results = [run_tests(generation, arguments.folder.resolve()) for generation in arguments.broker or DEBIAN_RELEASES]
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    else:
        Console().print(results_table(results))
    return 1 if any(result.passed is False for result in results) else 0


def run_tests(generation: str, folder: Path) -> BrokerResult:
    try:
        scripts = install_broker(DEBIAN_RELEASES[generation], folder)
        version = broker_version(scripts)
    except (BrokerUnavailable, subprocess.CalledProcessError, OSError) as error:
        print_status(f"RabbitMQ {generation} is skipped: {error}")
        return BrokerResult(generation, "none", None, f"skipped: {error}")
    print_status(f"RabbitMQ {version}: the tests of the bus and a short chaos run …")
    files = [f"tests/integration/{name}.py" for name in BROKER_TESTS] + ["tests/chaos/test_chaos.py"]
    began = time.monotonic()
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files],
        env=os.environ | {"ATELIER_RABBITMQ_PATH": str(scripts)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if completed.returncode:
        print_status(completed.stdout)
    return BrokerResult(generation, version, completed.returncode == 0, completed.stdout.splitlines()[-1], round(time.monotonic() - began))


def install_broker(debian_release: str, folder: Path) -> Path:
    """The folder of the broker's scripts. Raises BrokerUnavailable."""
    own = find_server_script(LocalSettings())
    if own and debian_release == platform.freedesktop_os_release().get("VERSION_CODENAME"):
        return own.parent
    root, scripts = folder / debian_release, folder / f"{debian_release}-scripts"
    if not (root / SCRIPTS / "rabbitmq-server").exists():
        debootstrap_broker(debian_release, root)
    scripts.mkdir(exist_ok=True)
    for name in ("rabbitmq-server", "rabbitmqctl"):
        script = scripts / name
        temporary = shlex.quote(tempfile.gettempdir())
        script.write_text(CHROOT_WRAPPER.format(root=shlex.quote(str(root)), temporary=temporary, script=SCRIPTS / name, name=name))
        script.chmod(0o755)
    return scripts


def debootstrap_broker(debian_release: str, root: Path) -> None:
    if os.geteuid() or not shutil.which("debootstrap"):
        raise BrokerUnavailable("unpacking it needs root and debootstrap (apt-get install debootstrap)")
    print_status(f"Unpacking {debian_release} with its RabbitMQ, about two minutes …")
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    scripts = Path("/usr/share/debootstrap/scripts")
    script = scripts / (debian_release if (scripts / debian_release).exists() else "sid")
    command = ["debootstrap", "--variant=minbase", "--include=rabbitmq-server", debian_release, str(root), debian_mirror(), str(script)]
    completed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if completed.returncode:
        raise BrokerUnavailable(f"debootstrap of {debian_release} failed: {completed.stdout.splitlines()[-1:]}")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")


def debian_mirror() -> str:
    """The mirror of this machine's own packages."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Component: main"]
    sites = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    if not sites:
        raise BrokerUnavailable("apt knows no mirror: run apt-get update")
    return Counter(sites).most_common(1)[0][0]


def broker_version(scripts: Path) -> str:
    completed = subprocess.run([scripts / "rabbitmqctl", "version"], stdout=subprocess.PIPE, text=True, check=True)
    return completed.stdout.split()[-1]


def results_table(results: Sequence[BrokerResult]) -> Table:
    table = Table("RabbitMQ", "version", "tests", "seconds", box=None)
    for result in results:
        table.add_row(result.generation, result.version, result.summary, f"{result.seconds:g}", style="" if result.passed else "red")
    return table


def print_status(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
