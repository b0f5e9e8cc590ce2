"""The requests to the backend: method, path and body as the source system's backend reads them."""

import json
from dataclasses import dataclass
from typing import Any

from bus.errors import PermanentError
from bus.masking import mask_text
from contracts.event import Progress
from contracts.fault import Fault
from contracts.webhook import Webhook

WEBHOOK_PATH = "/api/webhooks/inference/"
ERROR_CODES = {"out-of-memory": "GPU_OOM", "attempts-exhausted": "GENERATION_FAILED", "cancelled": "CANCELLED"}
"""Fault code to the backend's error code; any other code is written in upper snake case."""
ADDED_METADATA = (
    "prompt_tags",
    "lora_missing",
    "signature_missing",
    "signature_left_out",
)
"""Fields of the command that are added to the metadata of `complete` unless they are empty, false or 0."""
MAX_ERROR_MESSAGE_CHARS = 1000
FINAL_RETRY_COUNT = 3
"""With a smaller count the backend would submit the failed order again."""


@dataclass(frozen=True)
class WebhookRequest:
    method: str
    path: str
    body: bytes


def build_request(command: Webhook) -> WebhookRequest:
    """Raises PermanentError("webhook-incomplete") when the command lacks a field that its kind needs."""
    match command:
        case Webhook(kind="progress", progress=Progress() as progress):
            steps = {"current_step": progress.current_step, "total_steps": progress.total_steps}
            estimate = {"progress_percent": progress.progress_percent, "estimated_seconds": progress.estimated_seconds}
            return json_request("PATCH", command, progress=steps | estimate)
        case Webhook(kind="complete", result_url=str() as url):
            metadata = command.metadata | {name: value for name in ADDED_METADATA if (value := getattr(command, name))}
            metadata_field = {"metadata": metadata} if metadata else {}
            urls_field = {"result_urls": command.result_urls} if len(command.result_urls) > 1 else {}
            return json_request("POST", command, result_url=url, **urls_field, **metadata_field)
        case Webhook(kind="failed", fault=fault):
            return json_request("POST", command, **failure_fields(fault), retry_count=FINAL_RETRY_COUNT)
    raise PermanentError(
        "webhook-incomplete", f"A {command.kind!r} webhook needs its {'progress' if command.kind == 'progress' else 'result_url'}."
    )


def failure_fields(fault: Fault | None) -> dict[str, str]:
    if fault is None:
        return {"error_message": "Unknown error", "error_code": "GENERATION_FAILED"}
    code = ERROR_CODES.get(fault.code, fault.code.upper().replace("-", "_"))
    return {"error_message": mask_text(fault.message)[:MAX_ERROR_MESSAGE_CHARS], "error_code": code}


def json_request(method: str, command: Webhook, **fields: Any) -> WebhookRequest:
    body = {"generation_id": command.generation_id, **fields}
    return WebhookRequest(method, WEBHOOK_PATH + command.kind, json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
