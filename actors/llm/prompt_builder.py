"""The messages that a model gets: how it should behave, what was said before, and what is asked now, with pictures and documents."""

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from actors.attachments.documents import extract_text
from actors.attachments.image_preparation import prepare_image
from actors.engines.remote.openai_vlm import data_url
from actors.settings import AttachmentSettings
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.conversation import ConversationMessage
from contracts.text import Document, Message, Picture, Text

DATA_URL = re.compile(r"^data:[\w.+/-]+;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """What a command asks, as the model gets it. `said`: as it is kept, without bytes."""

    messages: list[dict[str, Any]]
    user_message: ConversationMessage
    has_images: bool
    has_documents: bool

    @property
    def engine_label(self) -> str:
        """As the source system calls it."""
        return "vLLM+Multimodal" if self.has_documents else "vLLM+Vision" if self.has_images else "vLLM"


@dataclass(frozen=True)
class PromptBuilder:
    """Fetches what a message refers to."""

    claims: ClaimStore
    settings: AttachmentSettings

    async def build(self, command: Text) -> Prompt:
        """Raises PermanentError: `invalid-message`, and what is wrong with a picture or a document."""
        if (command.message is None) == (command.messages is None):
            raise PermanentError("invalid-message", "send either message or messages")
        behave = [{"role": "system", "content": command.system}] if command.system else []
        if command.messages is not None:
            shown = [await self._to_openai_message(message) for message in command.messages]
            pictures = any(isinstance(message["content"], list) for message in shown)
            return Prompt([*behave, *shown], ConversationMessage(role="user", content="", timestamp=datetime.now(UTC)), pictures, False)
        return await self._build_turn(command, behave)

    async def _build_turn(self, command: Text, system_messages: list[dict[str, Any]]) -> Prompt:
        words = [await self._document_text(document) for document in command.documents]
        text = "\n\n".join([*words, command.message or ""])
        pictures = [await self._image_part(picture) for picture in command.pictures]
        content: Any = [*pictures, {"type": "text", "text": text}] if pictures else text
        said = ConversationMessage(
            role="user",
            content=command.message or "",
            timestamp=datetime.now(UTC),
            image_info={"count": len(pictures)} if pictures else None,
            file_info={"names": [document.name for document in command.documents]} if words else None,
        )
        return Prompt([*system_messages, {"role": "user", "content": content}], said, bool(pictures), bool(words))

    async def _to_openai_message(self, message: Message) -> dict[str, Any]:
        if isinstance(message.content, str):
            return {"role": message.role, "content": message.content}
        parts = [
            await self._image_part(part.picture) if part.picture else {"type": "text", "text": part.text or ""} for part in message.content
        ]
        if all(part["type"] == "text" for part in parts):
            return {"role": message.role, "content": "\n".join(part["text"] for part in parts)}
        return {"role": message.role, "content": parts}

    async def _image_part(self, picture: Picture) -> dict[str, Any]:
        url = data_url(await prepare_image(await self._load_bytes(picture), self.settings))
        return {"type": "image_url", "image_url": {"url": url}}

    async def _document_text(self, document: Document) -> str:
        text = await extract_text(await self._load_bytes(document), self.settings)
        return f"[{document.name or 'document'}]\n{text}"

    async def _load_bytes(self, attachment: Picture | Document) -> bytes:
        url = getattr(attachment, "url", None)
        if attachment.claim:
            return await self.claims.read(attachment.claim)
        if url:
            return await self.claims.fetch(url, max_bytes=self.settings.max_upload_bytes)
        if not attachment.data:
            raise PermanentError("invalid-message", "a picture or document has neither a claim nor data")
        try:
            return base64.b64decode("".join(DATA_URL.sub("", attachment.data.strip()).split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise PermanentError("invalid-message", f"what was attached is no base64: {error}") from error


def with_history(prompt: Prompt, history: tuple[tuple[str, str], ...], turns: int) -> list[dict[str, Any]]:
    """The messages with the last `turns` whole turns of the past before the question."""
    behave = [message for message in prompt.messages if message["role"] == "system"]
    rest = [message for message in prompt.messages if message["role"] != "system"]
    kept = history[len(history) - 2 * turns :] if turns else ()
    return [*behave, *({"role": role, "content": content} for role, content in kept), *rest] if history else prompt.messages


def reduce_turns(history: tuple[tuple[str, str], ...], turns: int, tokens: int, limit: int) -> int:
    """How many turns to try next: one less, or as few as the letters make likely to fit."""
    kept = history[len(history) - 2 * turns :]
    letters = sum(len(content) for _, content in kept)
    surplus = letters * (1 - limit / tokens) if tokens > limit else 0
    dropped, gone = 0, 0
    while dropped < turns and (not dropped or gone < surplus * 0.8):
        gone += sum(len(content) for _, content in kept[2 * dropped : 2 * dropped + 2])
        dropped += 1
    return turns - dropped
