"""How the writing actor is: asked over the bus when there is one, and known for a second. Part of `/health`; all of `/status/detailed`."""

import platform
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request

from contracts.text import TextStatus
from gateway.problems import ERROR_FORMATS
from gateway.text.status import TextStatusCache, TextStatusSnapshot, engine_stats

QUERY_STEPS = ("text.status",)


FILE_TYPES = ["pdf", "docx", "txt", "png", "jpg", "jpeg", "gif", "bmp", "webp"]


router = APIRouter(prefix="/status", tags=["writing"])


ERROR_FORMATS["/status/"] = lambda refused: {"detail": refused.detail}


@router.get("/detailed")
async def detailed(request: Request) -> dict[str, Any]:
    """All that is known of the writing actor and its engine."""
    statuses: TextStatusCache = request.app.state.text_status
    known = await statuses.latest()
    return status_sections(known, statuses.uptime)


def status_sections(snapshot: TextStatusSnapshot, uptime: float) -> dict[str, Any]:
    status, config = snapshot.status, snapshot.status.engine_config if snapshot.status else {}
    versions, sees = (status.versions, bool(status.vision)) if status else ({}, False)
    return {
        "server_info": {
            "version": version("atelier"),
            "engine": "vLLM",
            "multimodal_support": "enabled" if sees else "disabled",
            "uptime_seconds": uptime,
            "python_version": versions.get("python", platform.python_version()),
            "pytorch_version": versions.get("torch"),
        },
        "model_info": {
            "loaded": status is not None,
            "name": status.model_name if status else None,
            "max_model_len": str(status.max_model_len) if status and status.max_model_len else None,
            "max_num_seqs": str(config["max_num_seqs"]) if "max_num_seqs" in config else None,
            "limit_mm_per_prompt": config.get("limit_mm_per_prompt"),
            "lora_adapters": status.lora_adapters if status else [],
        },
        "gpu_info": gpu_section(status),
        "vllm_info": engine_stats(status) | {"tokens_generated": status.tokens_generated if status else 0} | {"versions": versions},
        "engine_config": config,
        "conversation_info": {"active_conversations": snapshot.conversations, "total_messages": snapshot.messages},
        "features": {
            "text_generation": status is not None,
            "vision_analysis": sees,
            "multimodal_analysis": status is not None,
            "file_upload": status is not None,
            "supported_file_types": FILE_TYPES,
        },
    }


def gpu_section(status: TextStatus | None) -> dict[str, Any]:
    used, total = (status.gpu_memory_used, status.gpu_memory_total) if status else (None, None)
    return {
        "available": total is not None,
        "device_count": 1 if total is not None else 0,
        "memory_used_gb": used,
        "memory_total_gb": total,
        "memory_usage_percent": round(100 * used / total, 1) if used is not None and total else None,
        "utilization": None,
    }
