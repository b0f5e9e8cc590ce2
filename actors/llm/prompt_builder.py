"""Builds the messages for a model: the system prompt, the history, and the question with its pictures and documents."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from actors.attachments.documents import DocumentReader
from actors.attachments.image_preparation import prepare_image
from actors.engines.remote.openai_vlm import data_url
from actors.settings import AttachmentSettings
from bus.errors import PermanentError
from bus.net.data_urls import decode_base64
from bus.storage.claim_store import ClaimStore
from contracts.conversation import ConversationMessage
from contracts.text import Document, Message, Picture, Text


@dataclass(frozen=True)
class Prompt:
    """A command's messages in OpenAI's form. `user_message`: the question as it is stored, without attachments."""

    messages: list[dict[str, Any]]
    user_message: ConversationMessage
    has_images: bool
    has_documents: bool

    @property
    def engine_label(self) -> str:
        """The source system's name for the engine."""
        return "vLLM+Multimodal" if self.has_documents else "vLLM+Vision" if self.has_images else "vLLM"


@dataclass(frozen=True)
class PromptBuilder:
    """Builds prompts, with the claims and documents that a command names."""

    claims: ClaimStore
    documents: DocumentReader
    settings: AttachmentSettings

    async def build(self, command: Text, tenant: str | None) -> Prompt:
        """Of a command that `check_command` accepts. Raises the error of a picture or a document that cannot be read."""
        system = [{"role": "system", "content": command.system}] if command.system else []
        if command.messages is not None:
            messages = [await self._to_openai_message(message, tenant) for message in command.messages]
            has_images = any(isinstance(message["content"], list) for message in messages)
            return Prompt([*system, *messages], unused_message(), has_images, has_documents=False)
        if command.raw_prompt is not None:
            return Prompt([], unused_message(), has_images=False, has_documents=False)
        return await self._build_turn(command, system, tenant)

    async def _build_turn(self, command: Text, system_messages: list[dict[str, Any]], tenant: str | None) -> Prompt:
        document_texts = [await self._document_text(document, tenant) for document in command.documents]
        text = "\n\n".join([*document_texts, command.message or ""])
        pictures = [await self._image_part(picture, tenant) for picture in command.pictures]
        content: Any = [*pictures, {"type": "text", "text": text}] if pictures else text
        user_message = ConversationMessage(
            role="user",
            content=command.message or "",
            timestamp=datetime.now(UTC),
            image_info={"count": len(pictures)} if pictures else None,
            file_info={"names": [document.name for document in command.documents]} if document_texts else None,
        )
        return Prompt([*system_messages, {"role": "user", "content": content}], user_message, bool(pictures), bool(document_texts))

    async def _to_openai_message(self, message: Message, tenant: str | None) -> dict[str, Any]:
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
        ]
        optional = {
            "tool_calls": calls or None,
            "tool_call_id": message.tool_call_id,
            "name": message.name,
            "reasoning_content": message.reasoning,
        }
        content = await self._to_openai_content(message, tenant)
        return {"role": message.role, "content": content} | {name: value for name, value in optional.items() if value is not None}

    async def _to_openai_content(self, message: Message, tenant: str | None) -> str | list[dict[str, Any]]:
        """A text, or the parts of a message with pictures."""
        if isinstance(message.content, str):
            return message.content
        parts = [
            await self._image_part(part.picture, tenant) if part.picture else {"type": "text", "text": part.text or ""}
            for part in message.content
        ]
        return "\n".join(part["text"] for part in parts) if all(part["type"] == "text" for part in parts) else parts

    async def _image_part(self, picture: Picture, tenant: str | None) -> dict[str, Any]:
        url = data_url(await prepare_image(await self._load_bytes(picture, tenant), self.settings))
        return {"type": "image_url", "image_url": {"url": url}}

    async def _document_text(self, document: Document, tenant: str | None) -> str:
        text = await self.documents.extract_text(await self._load_bytes(document, tenant))
        return f"[{document.name or 'document'}]\n{text}"

    async def _load_bytes(self, attachment: Picture | Document, tenant: str | None) -> bytes:
        url = getattr(attachment, "url", None)
        if attachment.claim:
            return await self.claims.read(attachment.claim, tenant=tenant)
        if url:
            return await self.claims.fetch(url, tenant=tenant, max_bytes=self.settings.max_upload_bytes)
        if not attachment.data:
            raise PermanentError("invalid-message", "a picture or document has neither a claim nor data")
        limit, large_code = self.settings.max_upload_bytes, "image-too-large" if isinstance(attachment, Picture) else "document-too-large"
        return await decode_base64(
            attachment.data, max_bytes=limit, broken_code="invalid-message", large_code=large_code, label="the attachment"
        )


def unused_message() -> ConversationMessage:
    """The question of a request that is not stored."""
    return ConversationMessage(role="user", content="", timestamp=datetime.now(UTC))


def with_history(prompt: Prompt, history: tuple[tuple[str, str], ...], turns: int) -> list[dict[str, Any]]:
    """The prompt's messages with the last `turns` turns (question and answer) of the history before the question."""
    system = [message for message in prompt.messages if message["role"] == "system"]
    rest = [message for message in prompt.messages if message["role"] != "system"]
    recent = history[len(history) - 2 * turns :] if turns else ()
    return [*system, *({"role": role, "content": content} for role, content in recent), *rest] if history else prompt.messages


def reduce_turns(history: tuple[tuple[str, str], ...], turns: int, tokens: int, limit: int) -> int:
    """How many turns to try next: one fewer, or as few as their length in characters makes likely to fit."""
    recent = history[len(history) - 2 * turns :]
    chars = sum(len(content) for _, content in recent)
    surplus_chars = chars * (1 - limit / tokens) if tokens > limit else 0
    dropped_turns, dropped_chars = 0, 0
    while dropped_turns < turns and (not dropped_turns or dropped_chars < surplus_chars * 0.8):
        dropped_chars += sum(len(content) for _, content in recent[2 * dropped_turns : 2 * dropped_turns + 2])
        dropped_turns += 1
    return turns - dropped_turns
