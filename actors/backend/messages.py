"""What is said to the backend: method, path and body of each call, as the source system's backend reads them."""

import json
from dataclasses import dataclass
from typing import Any

from bus.errors import PermanentError
from contracts.event import Progress
from contracts.fault import Fault
from contracts.webhook import Webhook

PATH = "/api/webhooks/inference/"
ERROR_CODES = {"out-of-memory": "GPU_OOM", "attempts-exhausted": "GENERATION_FAILED", "cancelled": "CANCELLED"}
"""Fault code to the backend's word; any other is the code itself in upper snake case."""
LONGEST_MESSAGE = 1000
FINAL_RETRY_COUNT = 3
"""A smaller one would make the backend order again what we have given up."""


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    body: bytes


def call_of(command: Webhook) -> Call:
    """Raises PermanentError("webhook-incomplete") when the command lacks what its kind needs."""
    match command:
        case Webhook(kind="progress", progress=Progress() as progress):
            steps = {"current_step": progress.current_step, "total_steps": progress.total_steps}
            rest = {"progress_percent": progress.progress_percent, "estimated_seconds": progress.estimated_seconds}
            return call("PATCH", command, progress=steps | rest)
        case Webhook(kind="complete", result_url=str() as url):
            metadata = command.metadata | ({"prompt_tags": command.prompt_tags} if command.prompt_tags else {})
            more = {"metadata": metadata} if metadata else {}
            several = {"result_urls": command.result_urls} if len(command.result_urls) > 1 else {}
            return call("POST", command, result_url=url, **several, **more)
        case Webhook(kind="failed", fault=fault):
            return call("POST", command, **failure(fault), retry_count=FINAL_RETRY_COUNT)
    raise PermanentError(
        "webhook-incomplete", f"A {command.kind!r} webhook needs its {'progress' if command.kind == 'progress' else 'result_url'}."
    )


def failure(fault: Fault | None) -> dict[str, str]:
    if fault is None:
        return {"error_message": "Unknown error", "error_code": "GENERATION_FAILED"}
    code = ERROR_CODES.get(fault.code, fault.code.upper().replace("-", "_"))
    return {"error_message": fault.message[:LONGEST_MESSAGE], "error_code": code}


def call(method: str, command: Webhook, **said: Any) -> Call:
    body = {"generation_id": command.generation_id, **said}
    return Call(method, PATH + command.kind, json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
