"""docker-compose.yml for tests: its services with every variable at its default, and as they are written."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from ops.docgen.generate import ROOT

TEXT = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def compose_document() -> dict[str, Any]:
    """With every variable at its default; a required one is `required`."""
    document: dict[str, Any] = yaml.safe_load(VARIABLE.sub(lambda match: match[3] if match[2] == "-" else "required", TEXT))
    return document


SERVICES = compose_document()["services"]
RAW_SERVICES = yaml.safe_load(TEXT)["services"]
"""With the variables as they are written."""


def run_vllm_server(tmp_path: Path, **environment: str) -> list[str]:
    """The arguments with which ops/deploy/vllm_server.sh starts `vllm` in the environment of the container."""
    program = tmp_path / "vllm"
    program.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    service = SERVICES["vllm-server"]["environment"]
    given = {name: value for name, value in service.items() if value is not None} | environment
    command = ["bash", str(ROOT / "ops/deploy/vllm_server.sh")]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | given
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
