"""Runs inside the gateway's container: waits until Prometheus has found all processes by their names and scrapes them."""

import json
import sys
import time
import urllib.parse
import urllib.request

TIMEOUT_SECONDS = 60.0
PROCESSES = 12
"""The processes of tests/compose/run.sh that export metrics: the gateway and eleven actors."""


def query(expression: str) -> list[dict[str, object]]:
    address = "http://prometheus:9090/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(address, timeout=5) as response:
        series: list[dict[str, object]] = json.load(response)["data"]["result"]
    return series


deadline = time.monotonic() + TIMEOUT_SECONDS
while len(query('up{job="atelier"} == 1')) < PROCESSES:
    assert time.monotonic() < deadline, query('up{job="atelier"}')
    time.sleep(1)
sys.stdout.write(f"{PROCESSES} processes\n")
