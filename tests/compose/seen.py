"""Run inside the gateway's container: Prometheus has found the processes by their names and reads them."""

import json
import sys
import time
import urllib.parse
import urllib.request

SECONDS = 60.0
ENOUGH = 12
"""Processes that tests/compose/run.sh starts and that tell figures: the gateway and eleven actors."""


def asked(question: str) -> list[dict[str, object]]:
    address = "http://prometheus:9090/api/v1/query?" + urllib.parse.urlencode({"query": question})
    with urllib.request.urlopen(address, timeout=5) as answer:
        found: list[dict[str, object]] = json.load(answer)["data"]["result"]
    return found


ends = time.monotonic() + SECONDS
while len(asked('up{job="atelier"} == 1')) < ENOUGH:
    assert time.monotonic() < ends, asked('up{job="atelier"}')
    time.sleep(1)
sys.stdout.write(f"{ENOUGH} processes\n")
