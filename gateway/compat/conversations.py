"""The CloudLLM API's `/conversations`: the text worker stores them, and replies over the bus. A key sees its own only."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from bus.amqp.request_reply import ReplyFault
from contracts.conversation import Conversation, ConversationLine, Conversations
from contracts.text import Role
from gateway.callers import caller_of
from gateway.compat.legacy_route import LegacyRoute
from gateway.problems import REQUEST_ERRORS, RETRY_AFTER, HttpProblem, RequestError
from gateway.services import services_of
from gateway.strict_model import HttpModel
from gateway.text.client import ENGINE_NOT_READY

QUERY_STEPS = tuple(f"conversation.{operation}" for operation in ("list", "get", "delete"))
CONVERSATION_NOT_FOUND = "대화를 찾을 수 없습니다"

router = APIRouter(prefix="/conversations", tags=["writing"], route_class=LegacyRoute)

ConversationId = Annotated[str, Path(max_length=255, examples=["7e0c7a5c-94c1-4f0a-a55f-a5be0a1d0a51"])]
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {404: {}, 503: {}}


class ConversationList(HttpModel):
    conversations: list[ConversationLine]
    total_conversations: int


class HistoryMessage(HttpModel):
    role: Role
    content: str
    timestamp: datetime
    image_info: dict[str, Any] | None = None
    file_info: dict[str, Any] | None = None


class ConversationDetail(HttpModel):
    conversation_id: str
    messages: list[HistoryMessage]
    message_count: int


class ConversationDeleted(HttpModel):
    message: str


@router.get("", responses={503: {}})
async def list_conversations(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0
) -> ConversationList:
    """Conversations, the most recently used first."""
    listing = Conversations.model_validate(await query(request, "conversation.list", limit=limit, offset=offset))
    return ConversationList(conversations=listing.conversations, total_conversations=listing.total_conversations)


@router.get("/{conversation_id}", responses=ERROR_RESPONSES, response_model_exclude_none=True)
async def get_conversation(request: Request, conversation_id: ConversationId) -> ConversationDetail:
    """All messages of one conversation."""
    conversation = Conversation.model_validate(await query(request, "conversation.get", conversation_id=conversation_id))
    return ConversationDetail.model_validate(conversation.model_dump())


@router.delete("/{conversation_id}", responses=ERROR_RESPONSES)
async def delete_conversation(request: Request, conversation_id: ConversationId) -> ConversationDeleted:
    """Delete one permanently."""
    await query(request, "conversation.delete", conversation_id=conversation_id)
    return ConversationDeleted(message=f"대화 {conversation_id}가 삭제되었습니다")


async def query(request: Request, step: str, **fields: Any) -> dict[str, Any]:
    """Raises HttpProblem(404, 500, 503)."""
    try:
        return await services_of(request).commands.query(step, fields, tenant=caller_of(request))
    except REQUEST_ERRORS as error:
        raise to_conversation_problem(error) from error


def to_conversation_problem(error: RequestError) -> HttpProblem:
    if isinstance(error, ReplyFault):
        if error.fault.code == "conversation-unknown":
            return HttpProblem(404, error.fault.code, CONVERSATION_NOT_FOUND)
        if error.fault.code != "loading":
            return HttpProblem(500, error.fault.code, error.fault.message)
    return HttpProblem(503, "no reply in time", ENGINE_NOT_READY, RETRY_AFTER)
