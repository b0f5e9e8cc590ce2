"""The page Chat: conversations with the text actor. Replies are streamed; a message may carry a picture."""

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from gateway.compat.chat import error_event, store_image, turn_events
from gateway.compat.chat_requests import VisionTurn
from gateway.compat.conversations import delete_conversation, get_conversation, list_conversations
from gateway.console.form_body import SubmittedForm
from gateway.console.guard import ConsoleRoute, validate_input
from gateway.console.rendering import render_page
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.problems import REQUEST_ERRORS, HttpProblem
from gateway.sse import sse_response
from gateway.text.client import generate_text, lacks_vision, to_legacy_problem

CHAT_PATH = f"{CONSOLE_PATH}/chat"
GENERATION_FAILED = "The reply could not be generated"

router = APIRouter(prefix=CHAT_PATH, route_class=ConsoleRoute, include_in_schema=False)


@router.get("")
async def show_chat(request: Request, conversation: Annotated[str, Query(max_length=255)] = "") -> Response:
    """The list of conversations, and the messages of one. While the text actor is unavailable the page shows that instead of failing."""
    try:
        conversations = (await list_conversations(request, limit=50, offset=0)).conversations
        unavailable = None
    except HttpProblem as error:
        conversations, unavailable = [], error.title
    messages = (await get_conversation(request, conversation)).messages if conversation and not unavailable else []
    return render_page(
        request, "chat.html", conversations=conversations, messages=messages, conversation=conversation, unavailable=unavailable
    )


@router.post("")
async def send_message(request: Request) -> Response:
    """Server-sent events for the page's script; for a browser without scripts, a redirect to the conversation with the complete reply."""
    form: SubmittedForm = request.state.form
    command = await build_text_command(request, form)
    if "text/event-stream" in request.headers.get("accept", ""):
        return await sse_response(request, turn_events(request, command, GENERATION_FAILED, {}), error_event)
    try:
        reply = await generate_text(request, command)
    except REQUEST_ERRORS as error:
        raise to_legacy_problem(error, GENERATION_FAILED) from error
    return RedirectResponse(f"{CHAT_PATH}?conversation={quote(reply.conversation_id or '', safe='')}", 303)


async def build_text_command(request: Request, form: SubmittedForm) -> dict[str, Any]:
    """The text command. Raises HttpProblem: 422 for an empty message, 400 for a file that is no image, 501 for one to a text-only model."""
    fields = form.non_blank("message", "conversation_id", "image_data")
    if "message" not in fields:
        raise HttpProblem(422, "message-missing", "The message is empty.")
    turn = validate_input(VisionTurn, fields)
    if turn.image_data and await lacks_vision(request):
        raise HttpProblem(501, "vision-unsupported", "The served model reads no pictures.")
    picture = await store_image(request, turn, {})
    return turn.command() | ({"pictures": [picture]} if picture else {})


@router.post("/forget")
async def delete(request: Request) -> Response:
    await delete_conversation(request, request.state.form.get("conversation_id", ""))
    return RedirectResponse(CHAT_PATH, 303)
