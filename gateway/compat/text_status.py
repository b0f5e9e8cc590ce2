"""The CloudLLM API's `/status/detailed`: the status of the text worker and its engine."""

import platform
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request

from contracts.text import TextStatus
from gateway.compat.legacy_route import LegacyRoute
from gateway.services import services_of
from gateway.text.status import TextStatusSnapshot, engine_stats

FILE_TYPES = ["pdf", "docx", "txt", "png", "jpg", "jpeg", "gif", "bmp", "webp"]

router = APIRouter(prefix="/status", tags=["writing"], route_class=LegacyRoute)


@router.get("/detailed", operation_id="detailed_status_detailed_get", summary="Detailed")
async def detailed_status(request: Request) -> dict[str, Any]:
    """The status of the text worker, its model and its engine."""
    text_status = services_of(request).text_status
    return status_sections(await text_status.latest(), text_status.uptime)


def status_sections(snapshot: TextStatusSnapshot, uptime: float) -> dict[str, Any]:
    status, config = snapshot.status, snapshot.status.engine_config if snapshot.status else {}
    versions, vision = (status.versions, bool(status.vision)) if status else ({}, False)
    return {
        "server_info": {
            "version": version("atelier"),
            "engine": "vLLM",
            "multimodal_support": "enabled" if vision else "disabled",
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
        "vllm_info": batch_section(status) | {"versions": versions},
        "engine_config": config,
        "conversation_info": {"active_conversations": snapshot.conversations, "total_messages": snapshot.messages},
        "features": {
            "text_generation": status is not None,
            "vision_analysis": vision,
            "multimodal_analysis": status is not None,
            "file_upload": status is not None,
            "supported_file_types": FILE_TYPES,
        },
    }


def batch_section(status: TextStatus | None) -> dict[str, Any]:
    """The engine's batch. `max_num_seqs`: its size; `cache_utilization`: percent of the key-value cache in use."""
    return engine_stats(status) | {
        "max_num_seqs": status.engine_config.get("max_num_seqs") if status else None,
        "cache_utilization": status.cache_utilization if status else None,
        "tokens_generated": status.tokens_generated if status else 0,
    }


def gpu_section(status: TextStatus | None) -> dict[str, Any]:
    """The GPUs of the engine, as it reports them: null where there is none, or where its server does not say."""
    used, total = (status.gpu_memory_used, status.gpu_memory_total) if status else (None, None)
    return {
        "available": bool(status.gpu_count) if status and status.gpu_count is not None else None,
        "device_count": status.gpu_count if status else None,
        "memory_used_gb": used,
        "memory_total_gb": total,
        "memory_usage_percent": round(100 * used / total, 1) if used is not None and total else None,
        "utilization": status.gpu_utilization if status else None,
    }
