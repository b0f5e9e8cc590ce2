"""Document 003's `/conversations`: what was said is kept by the writing actor, which answers over the bus. A key sees its own alone."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel

from bus.request_reply import ReplyFault
from contracts.conversation import Conversation, ConversationLine, Conversations
from contracts.text import Role
from gateway.callers import caller_of
from gateway.problems import FORMS, Refused
from gateway.source_route import SourceRoute
from gateway.writing import FAILURES, NOT_READY, RETRY, Failure

QUESTIONS = tuple(f"conversation.{word}" for word in ("list", "get", "delete"))
"""The steps asked here."""
UNKNOWN = "대화를 찾을 수 없습니다"

router = APIRouter(prefix="/conversations", tags=["writing"], route_class=SourceRoute)
FORMS["/conversations"] = lambda refused: {"detail": refused.detail}

ConversationId = Annotated[str, Path(max_length=255, examples=["7e0c7a5c-94c1-4f0a-a55f-a5be0a1d0a51"])]
ERRORS: dict[int | str, dict[str, Any]] = {404: {}, 503: {}}


class Listed(BaseModel):
    conversations: list[ConversationLine]
    total_conversations: int


class Line(BaseModel):
    role: Role
    content: str
    timestamp: datetime
    image_info: dict[str, Any] | None = None
    file_info: dict[str, Any] | None = None


class Whole(BaseModel):
    conversation_id: str
    messages: list[Line]
    message_count: int


class Deleted(BaseModel):
    message: str


@router.get("", responses={503: {}})
async def list_conversations(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0
) -> Listed:
    """The one spoken in last comes first."""
    found = Conversations.model_validate(await ask(request, "conversation.list", limit=limit, offset=offset))
    return Listed(conversations=found.conversations, total_conversations=found.total_conversations)


@router.get("/{conversation_id}", responses=ERRORS, response_model_exclude_none=True)
async def get_conversation(request: Request, conversation_id: ConversationId) -> Whole:
    """All that was said in one."""
    found = Conversation.model_validate(await ask(request, "conversation.get", conversation_id=conversation_id))
    return Whole.model_validate(found.model_dump())


@router.delete("/{conversation_id}", responses=ERRORS)
async def delete_conversation(request: Request, conversation_id: ConversationId) -> Deleted:
    """Forget one for good."""
    await ask(request, "conversation.delete", conversation_id=conversation_id)
    return Deleted(message=f"대화 {conversation_id}가 삭제되었습니다")


async def ask(request: Request, step: str, **question: Any) -> dict[str, Any]:
    """Raises Refused(404 · 503)."""
    state = request.app.state
    try:
        answer: dict[str, Any] = await state.requests.request(
            step, question, seconds=state.settings.question_seconds, tenant=caller_of(request)
        )  # fmt: skip
        return answer
    except FAILURES as error:
        raise refused(error) from error


def refused(error: Failure) -> Refused:
    if isinstance(error, ReplyFault):
        if error.fault.code == "conversation-unknown":
            return Refused(404, error.fault.code, UNKNOWN)
        if error.fault.code != "loading":
            return Refused(500, error.fault.code, error.fault.message)
    return Refused(503, "no reply in time", NOT_READY, RETRY)
