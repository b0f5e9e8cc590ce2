"""Chat: conversations with the writing actor, word by word, with a picture when there is one. In the place of document 004's page."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from gateway.chat import events, picture_of
from gateway.console.counter import ConsoleRoute, Form
from gateway.console.rendering import page
from gateway.console.sessions import PATH
from gateway.conversations import delete_conversation, get_conversation, list_conversations
from gateway.problems import Refused
from gateway.server_sent import send_stream
from gateway.turns import VisionTurn
from gateway.writing import FAILURES, refusal, written

HERE = f"{PATH}/chat"
FAILED = "The answer could not be written"

router = APIRouter(prefix=HERE, route_class=ConsoleRoute, include_in_schema=False)


@router.get("")
async def talk(request: Request, conversation: Annotated[str, Query(max_length=255)] = "") -> Response:
    """The conversations, and one of them. Without a writing actor the page says so and stays."""
    try:
        listed = (await list_conversations(request, limit=50, offset=0)).conversations
        trouble = None
    except Refused as error:
        listed, trouble = [], error.title
    said = (await get_conversation(request, conversation)).messages if conversation and not trouble else []
    return page(request, "chat.html", listed=listed, said=said, conversation=conversation, trouble=trouble)


@router.post("")
async def say(request: Request) -> Response:
    """As server-sent events for the page's script; whole, and back to the page, for a browser without one."""
    form: Form = request.state.form
    command = await command_of(request, form)
    if "text/event-stream" in request.headers.get("accept", ""):
        return await send_stream(request, events(request, command, FAILED, {}))
    try:
        done = await written(request, command)
    except FAILURES as error:
        raise refusal(error, FAILED) from error
    return RedirectResponse(f"{HERE}?conversation={done.conversation_id or ''}", 303)


async def command_of(request: Request, form: Form) -> dict[str, Any]:
    """Raises Refused for a message without words, or a picture that is none."""
    fields = form.said("message", "conversation_id", "image_data")
    if "message" not in fields:
        raise Refused(422, "message-missing", "Write something first.")
    turn = VisionTurn.model_validate(fields)
    picture = await picture_of(request, turn, {})
    return turn.command() | ({"pictures": [picture]} if picture else {})


@router.post("/forget")
async def forget(request: Request) -> Response:
    await delete_conversation(request, request.state.form.get("conversation_id", ""))
    return RedirectResponse(HERE, 303)
