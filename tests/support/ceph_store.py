"""A private Ceph cluster with its S3 gateway: one monitor and one object store in memory, on loopback. It starts within seconds."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import httpx

from ops.local.daemon import free_ports
from tests.support.debian_programs import find_program

ACCESS_KEY, SECRET_KEY = "atelier", "a-secret-of-ceph"
START_SECONDS = 60
CONFIGURATION = """
[global]
fsid = {fsid}
keyring = {folder}/keyring
mon host = [v2:127.0.0.1:{monitor_port}]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
paxos propose interval = 0.05
paxos min wait = 0.01
osd objectstore = memstore
memstore device bytes = 536870912
run dir = {folder}
log file = /dev/null
admin socket = {folder}/$name.asok
mon data = {folder}/mon
mon data avail crit = 1
osd data = {folder}/osd
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{gateway_port}
rgw run sync thread = false
rgw enable usage log = false
"""


@contextmanager
def open_ceph(folder: Path) -> Iterator[str]:
    """The address of the S3 gateway. Skips the test where Ceph's packages cannot be had."""
    programs = {name: find_program(name, package) for name, package in [("ceph-mon", "ceph-mon"), ("ceph-osd", "ceph-osd")]}
    programs["radosgw"] = find_program("radosgw", "radosgw")
    fsid, osd, (monitor_port, gateway_port) = uuid4(), uuid4(), free_ports(2)
    configuration = folder / "ceph.conf"
    configuration.write_text(CONFIGURATION.format(fsid=fsid, folder=folder, monitor_port=monitor_port, gateway_port=gateway_port))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()

    def call(program: str, *arguments: str) -> None:
        options = ["-c", str(configuration)] if program not in ("ceph-authtool", "monmaptool") else []
        command = [programs.get(program, program), *options, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"

    processes: list[subprocess.Popen[bytes]] = []

    def start(program: str, *arguments: str) -> None:
        with (folder / f"{program}.log").open("wb") as log:
            command = [programs[program], "-c", str(configuration), *arguments, "-f"]
            processes.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log))

    try:
        call("ceph-authtool", "--create-keyring", "keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
        call("ceph-authtool", "keyring", "--gen-key", "-n", "client.admin", *everything)
        call("ceph-authtool", "keyring", "--gen-key", "-n", "osd.0", "--cap", "mon", "allow profile osd", "--cap", "osd", "allow *")
        call("monmaptool", "--create", "--fsid", str(fsid), "--addv", "a", f"[v2:127.0.0.1:{monitor_port}]", "monmap")
        call("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        start("ceph-mon", "-i", "a")
        call("ceph", "osd", "new", str(osd))
        call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(osd))
        start("ceph-osd", "-i", "0")
        user = ("user", "create", "--uid=atelier", "--display-name=atelier", f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
        call("radosgw-admin", *user)
        start("radosgw", "-n", "client.admin")
        url = f"http://127.0.0.1:{gateway_port}"
        wait_until(lambda: responds(url), lambda: f"no response of Ceph's gateway: {(folder / 'radosgw.log').read_text()[-2000:]}")
        yield url
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], bool], message: Callable[[], str]) -> None:
    """`message`: called when the time is over, for what a log says by then."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.1)


def responds(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def store_settings(url: str) -> dict[str, Any]:
    """Of the store `s3://gallery/atelier`, whose bucket is new: every bucket that an earlier test left is deleted."""
    client = boto3.client("s3", endpoint_url=url, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name="us-east-1")
    for bucket in (found["Name"] for found in client.list_buckets()["Buckets"]):
        for item in client.list_objects_v2(Bucket=bucket).get("Contents", []):
            client.delete_object(Bucket=bucket, Key=item["Key"])
        client.delete_bucket(Bucket=bucket)
    client.create_bucket(Bucket="gallery")
    return {
        "store_url": "s3://gallery/atelier",
        "AWS_S3_ENDPOINT_URL": url,
        "AWS_S3_REGION_NAME": "us-east-1",
        "aws_access_key_id": ACCESS_KEY,
        "aws_secret_access_key": SECRET_KEY,
    }
