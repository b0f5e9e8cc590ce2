"""How the writing actor is: asked over the bus when there is one, and known for a second. Part of `/health`; all of `/status/detailed`."""

import asyncio
import platform
import time
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from bus.request_reply import ReplyFault, Requests
from contracts.conversation import Conversations
from contracts.text import TextStatus
from gateway.problems import FORMS
from gateway.writing import FAILURES

QUESTIONS = ("text.status",)
FILE_TYPES = ["pdf", "docx", "txt", "png", "jpg", "jpeg", "gif", "bmp", "webp"]

router = APIRouter(prefix="/status", tags=["writing"])
FORMS["/status/"] = lambda refused: {"detail": refused.detail}


class Known(BaseModel):
    """`there`: an actor serves; without `status` its model is loading."""

    there: bool = False
    status: TextStatus | None = None
    conversations: int = 0
    messages: int = 0

    @property
    def loading(self) -> bool:
        return self.there and self.status is None


class TextStatuses:
    """The latest word of the writing actor. A question is sent only when someone is there to take it."""

    def __init__(self, requests: Requests, fresh_seconds: float = 1.0, patience_seconds: float = 2.0) -> None:
        self._requests, self._fresh, self._patience = requests, fresh_seconds, patience_seconds
        self._known, self._at, self._asking = Known(), -fresh_seconds, asyncio.Lock()
        self.begun = time.monotonic()

    @property
    def uptime(self) -> float:
        return round(time.monotonic() - self.begun, 1)

    async def latest(self) -> Known:
        async with self._asking:
            if time.monotonic() - self._at >= self._fresh:
                self._known, self._at = await self._ask(), time.monotonic()
            return self._known

    async def _ask(self) -> Known:
        try:
            if not await self._requests.served("text.status"):
                return Known()
            status, talks = await asyncio.gather(self._answer("text.status"), self._answer("conversation.list", limit=1))
        except FAILURES:
            return Known()
        counted = Conversations.model_validate(talks) if talks else None
        return Known(
            there=True,
            status=TextStatus.model_validate(status) if status else None,
            conversations=counted.total_conversations if counted else 0,
            messages=counted.total_messages if counted else 0,
        )

    async def _answer(self, step: str, **question: Any) -> dict[str, Any] | None:
        """None: not now."""
        if not await self._requests.served(step):
            return None
        try:
            return await self._requests.request(step, question, seconds=self._patience)
        except FAILURES as error:
            if isinstance(error, ReplyFault) and error.fault.code != "loading":
                raise
            return None


def health_of(known: Known, uptime: float) -> dict[str, Any]:
    """Document 003's fields."""
    status = known.status
    return {
        "model_loaded": status is not None,
        "model_name": status.model_name if status else None,
        "engine_type": "vLLM",
        "device": status.device if status else None,
        "gpu_memory_used": status.gpu_memory_used if status else None,
        "gpu_memory_total": status.gpu_memory_total if status else None,
        "vllm_stats": stats(status),
        "engine_config": status.engine_config if status else {},
        "active_conversations": known.conversations,
        "uptime": uptime,
    }


def stats(status: TextStatus | None) -> dict[str, Any]:
    return {
        "engine_status": status.engine_status if status else "stopped",
        "pending_requests": status.pending_requests if status else 0,
        "running_requests": status.running_requests if status else 0,
    }


@router.get("/detailed")
async def detailed(request: Request) -> dict[str, Any]:
    """All that is known of the writing actor and its engine."""
    statuses: TextStatuses = request.app.state.text_statuses
    known = await statuses.latest()
    return sections(known, statuses.uptime)


def sections(known: Known, uptime: float) -> dict[str, Any]:
    status, config = known.status, known.status.engine_config if known.status else {}
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
        "gpu_info": gpu(status),
        "vllm_info": stats(status) | {"tokens_generated": status.tokens_generated if status else 0} | {"versions": versions},
        "engine_config": config,
        "conversation_info": {"active_conversations": known.conversations, "total_messages": known.messages},
        "features": {
            "text_generation": status is not None,
            "vision_analysis": sees,
            "multimodal_analysis": status is not None,
            "file_upload": status is not None,
            "supported_file_types": FILE_TYPES,
        },
    }


def gpu(status: TextStatus | None) -> dict[str, Any]:
    used, total = (status.gpu_memory_used, status.gpu_memory_total) if status else (None, None)
    return {
        "available": total is not None,
        "device_count": 1 if total is not None else 0,
        "memory_used_gb": used,
        "memory_total_gb": total,
        "memory_usage_percent": round(100 * used / total, 1) if used is not None and total else None,
        "utilization": None,
    }
