"""Examples of request and response bodies by the name of their schema. Other examples are built from the fields of the schema."""

from typing import Any

JOB_ID = "01a1fc38-053f-71e3-a782-9ac153c8b035"
DEAD_LETTER_ID = "5d1c0c9c0f3b8a21"
STARTED_AT, ENDED_AT = "2026-11-21T03:00:00Z", "2026-11-21T03:00:09Z"
LINKS = {"self": f"/jobs/{JOB_ID}", "events": f"/jobs/{JOB_ID}/events", "cancel": f"/jobs/{JOB_ID}"}
RESULT = {"result_url": f"https://media.example/job-{JOB_ID}.png"}
JOB: dict[str, Any] = {
    "job_id": JOB_ID,
    "kind": "image_order",
    "state": "completed",
    "tenant": "shop",
    "itinerary": ["image", "watermark", "upload"],
    "created_at": STARTED_AT,
    "updated_at": ENDED_AT,
    "result": RESULT,
}
STEP = {"step": "image", "state": "completed", "at": ENDED_AT, "worker": "gpu-1:77", "attempt": 1, "seconds": 2.5, "queued_seconds": 0.2}
FILE = {
    "name": f"job-{JOB_ID}.png",
    "href": f"/jobs/{JOB_ID}/files/job-{JOB_ID}.png",
    "media_type": "image/png",
    "size": 412_345,
    "sha256": "ab" * 32,
}
VARIANT = {"job_variants_id": "6f0e2b1e-3f6a-4f0e-9a43-0b1a7f6a2a11", "job_id": JOB_ID, "tenant_id": "shop"}
VERDICT = {
    "job_id": JOB_ID,
    "vlm_trace_id": "2b7c1f0e-7d1f-4a55-8d3c-1f1f3c2b4a5d",
    "analysis": "Warm light, the bowl is in focus.",
    "issues": [],
}
CAUSE = {"step": "image", "code": "lora-missing", "exception_type": "PermanentError"}
TIMES = {"first_failed_at": STARTED_AT, "last_failed_at": ENDED_AT}
DEAD_LETTER: dict[str, Any] = (
    CAUSE
    | TIMES
    | {
        "id": DEAD_LETTER_ID,
        "state": "unresolved",
        "dead_queue": "atelier.dead.image",
        "target": "atelier.image",
        "message_id": "m-7",
        "sent_as": "m-7",
        "job_id": JOB_ID,
        "tenant": "shop",
        "group_id": "9b1e",
        "message": "no LoRA at s3://loras/style.safetensors",
        "changed_at": ENDED_AT,
    }
)
TIMINGS = {"generation_ms": 1850.2, "total_ms": 1862.0, "tokens_generated": 38, "tokens_per_second": 20.5}
MODEL_INFO = {"engine": "vLLM", "model_name": "writer", "max_tokens": 64, "temperature": 0.7, "timings": TIMINGS}
SELECTION = {"selection": {"code": "lora-missing"}, "dry_run": False}

EXAMPLES: dict[str, Any] = {
    "SubmitJobResponse": {"job_id": JOB_ID, "state": "completed", "result": RESULT, "links": LINKS},
    "Cancelling": {"job_id": JOB_ID, "state": "cancelling"},
    "Jobs": {"jobs": [JOB]},
    "JobView": JOB | {"steps": [STEP], "files": [FILE], "links": LINKS},
    "DeadLetters": {"letters": [DEAD_LETTER], "total": 1},
    "DeadLetterGroups": {"groups": [CAUSE | TIMES | {"group_id": "9b1e", "letters": 31, "states": {"unresolved": 31}}]},
    "WholeDeadLetter": DEAD_LETTER | {"body": '{"prompt": "harbour"}', "history": [{"at": STARTED_AT, "kind": "failed"}]},
    "Replay": SELECTION,
    "Replayed": {"dry_run": False, "letters": 31, "replay_id": 7, "ids": [DEAD_LETTER_ID]},
    "Move": SELECTION | {"to": "archived"},
    "Moved": {"dry_run": False, "to": "archived", "letters": 31},
    "Edit": {"body": {"prompt": "harbour"}, "dry_run": False},
    "Edited": {"dry_run": False, "id": DEAD_LETTER_ID, "message_id": "m-8", "replay_id": 8, "contract": "image.v1"},
    "Predictions": {"predictions": ["<SUMMARY> … </SUMMARY> <CONCLUSION> A red fox. </CONCLUSION>"]},
    "ValidateIn": VARIANT,
    "ValidateOut": VERDICT | {"is_valid": True, "image_quality_ok": True, "relevance_score": 0.93, "recommendations": []},
    "JudgeIn": VARIANT,
    "JudgeOut": VERDICT | {"on_brief": True, "occlusion": False, "contrast_ok": True, "cta_present": False},
    "Pictures": {
        "created": 1_795_230_000,
        "data": [{"b64_json": "iVBORw0KGgo="}],
        "output_format": "png",
        "size": "512x512",
        "seeds": [42],
    },
    "Generation": {"response": "라멘을 추천합니다.", "conversation_id": "7e0c7a5c", "generation_time": 1.9, "model_info": MODEL_INFO},
    "HTTPValidationError": {"detail": [{"loc": ["body", "tenant_id"], "msg": "Field required", "type": "missing"}]},
}

BY_MEDIA_TYPE: dict[str, Any] = {
    "text/event-stream": f'id: 7d1f4a55\nevent: image.completed\ndata: {{"kind": "completed", "step": "image", "job_id": "{JOB_ID}"}}\n\n',
    "application/octet-stream": "the bytes of the file",
}

PROBLEMS: dict[int, tuple[str, str]] = {
    400: ("Bad Request", "X-Request-Timeout is a number of seconds above 0."),
    401: ("Unauthorized", "Send a known key as `Authorization: Bearer …` or `X-API-Key: …`."),
    403: ("tenant-foreign", "This key belongs to the tenant 'shop'; it cannot act for another one."),
    404: ("job-unknown", f"no job '{JOB_ID}' is in the ledger; a job just sent appears within moments"),
    409: ("job-ended", "the job is completed"),
    413: ("Content Too Large", "The body has 2000000 bytes, 1048576 are allowed."),
    422: ("invalid-request", "body.prompt: Field required"),
    429: ("too many requests", "The rate limit is exceeded."),
    500: ("internal error", "The request failed in the gateway. Its log has the reason under the request's id."),
    502: ("lora-missing", "no LoRA at s3://loras/style.safetensors"),
    503: ("the bus is away", "the broker did not confirm image.v1 to 'image'"),
    504: ("no reply in time", f"no reply within 30 s; the job is {JOB_ID}"),
}


def example_problem(status: int) -> dict[str, Any]:
    title, detail = PROBLEMS[status]
    return {"type": "about:blank", "title": title, "status": status, "detail": detail}
