"""Chat: conversations with the writing actor, word by word, with a picture when there is one. In the place of document 004's page."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from gateway.compat.chat import store_image, turn_events
from gateway.compat.chat_requests import VisionTurn
from gateway.compat.conversations import delete_conversation, get_conversation, list_conversations
from gateway.console.guard import ConsoleRoute, SubmittedForm
from gateway.console.rendering import render_page
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.problems import HttpProblem
from gateway.sse import sse_response
from gateway.text.client import REQUEST_ERRORS, generate_text, to_legacy_problem

CHAT_PATH = f"{CONSOLE_PATH}/chat"
ANSWER_FAILED = "The answer could not be written"

router = APIRouter(prefix=CHAT_PATH, route_class=ConsoleRoute, include_in_schema=False)


@router.get("")
async def show_chat(request: Request, conversation: Annotated[str, Query(max_length=255)] = "") -> Response:
    """The conversations, and one of them. Without a writing actor the page says so and stays."""
    try:
        listed = (await list_conversations(request, limit=50, offset=0)).conversations
        trouble = None
    except HttpProblem as error:
        listed, trouble = [], error.title
    said = (await get_conversation(request, conversation)).messages if conversation and not trouble else []
    return render_page(request, "chat.html", listed=listed, said=said, conversation=conversation, trouble=trouble)


@router.post("")
async def send_message(request: Request) -> Response:
    """As server-sent events for the page's script; whole, and back to the page, for a browser without one."""
    form: SubmittedForm = request.state.form
    command = await build_command(request, form)
    if "text/event-stream" in request.headers.get("accept", ""):
        return await sse_response(request, turn_events(request, command, ANSWER_FAILED, {}))
    try:
        done = await generate_text(request, command)
    except REQUEST_ERRORS as error:
        raise to_legacy_problem(error, ANSWER_FAILED) from error
    return RedirectResponse(f"{CHAT_PATH}?conversation={done.conversation_id or ''}", 303)


async def build_command(request: Request, form: SubmittedForm) -> dict[str, Any]:
    """Raises Refused for a message without words, or a picture that is none."""
    fields = form.non_blank("message", "conversation_id", "image_data")
    if "message" not in fields:
        raise HttpProblem(422, "message-missing", "Write something first.")
    turn = VisionTurn.model_validate(fields)
    picture = await store_image(request, turn, {})
    return turn.command() | ({"pictures": [picture]} if picture else {})


@router.post("/forget")
async def delete(request: Request) -> Response:
    await delete_conversation(request, request.state.form.get("conversation_id", ""))
    return RedirectResponse(CHAT_PATH, 303)
