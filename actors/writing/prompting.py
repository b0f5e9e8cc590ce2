"""The messages that a model gets: how it should behave, what was said before, and what is asked now, with pictures and documents."""

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from actors.attachments.documents import words_of
from actors.attachments.pictures import fitted
from actors.attachments.settings import AttachmentSettings
from actors.engines.openai_http import data_url
from bus.claims import ClaimStore
from bus.errors import PermanentError
from contracts.conversation import Said
from contracts.text import Document, Message, Picture, Text

DATA_URL = re.compile(r"^data:[\w.+/-]+;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """What a command asks, as the model gets it. `said`: as it is kept, without bytes."""

    messages: list[dict[str, Any]]
    said: Said
    pictures: bool
    documents: bool

    @property
    def engine(self) -> str:
        """As the source system calls it."""
        return "vLLM+Multimodal" if self.documents else "vLLM+Vision" if self.pictures else "vLLM"


@dataclass(frozen=True)
class Reader:
    """Fetches what a message refers to."""

    claims: ClaimStore
    settings: AttachmentSettings

    async def asked(self, command: Text) -> Asked:
        """Raises PermanentError: `invalid-message`, and what is wrong with a picture or a document."""
        if (command.message is None) == (command.messages is None):
            raise PermanentError("invalid-message", "send either message or messages")
        behave = [{"role": "system", "content": command.system}] if command.system else []
        if command.messages is not None:
            shown = [await self._shown(message) for message in command.messages]
            pictures = any(isinstance(message["content"], list) for message in shown)
            return Asked([*behave, *shown], Said(role="user", content="", timestamp=datetime.now(UTC)), pictures, False)
        return await self._turn(command, behave)

    async def _turn(self, command: Text, behave: list[dict[str, Any]]) -> Asked:
        words = [await self._words(document) for document in command.documents]
        text = "\n\n".join([*words, command.message or ""])
        pictures = [await self._picture(picture) for picture in command.pictures]
        content: Any = [*pictures, {"type": "text", "text": text}] if pictures else text
        said = Said(
            role="user",
            content=command.message or "",
            timestamp=datetime.now(UTC),
            image_info={"count": len(pictures)} if pictures else None,
            file_info={"names": [document.name for document in command.documents]} if words else None,
        )
        return Asked([*behave, {"role": "user", "content": content}], said, bool(pictures), bool(words))

    async def _shown(self, message: Message) -> dict[str, Any]:
        if isinstance(message.content, str):
            return {"role": message.role, "content": message.content}
        parts = [
            await self._picture(part.picture) if part.picture else {"type": "text", "text": part.text or ""} for part in message.content
        ]
        if all(part["type"] == "text" for part in parts):
            return {"role": message.role, "content": "\n".join(part["text"] for part in parts)}
        return {"role": message.role, "content": parts}

    async def _picture(self, picture: Picture) -> dict[str, Any]:
        url = data_url(await fitted(await self._bytes(picture), self.settings))
        return {"type": "image_url", "image_url": {"url": url}}

    async def _words(self, document: Document) -> str:
        text = await words_of(await self._bytes(document), self.settings)
        return f"[{document.name or 'document'}]\n{text}"

    async def _bytes(self, thing: Picture | Document) -> bytes:
        url = getattr(thing, "url", None)
        if thing.claim:
            return await self.claims.read(thing.claim)
        if url:
            return await self.claims.fetch(url, max_bytes=self.settings.max_upload_bytes)
        if not thing.data:
            raise PermanentError("invalid-message", "a picture or document has neither a claim nor data")
        try:
            return base64.b64decode("".join(DATA_URL.sub("", thing.data.strip()).split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise PermanentError("invalid-message", f"what was attached is no base64: {error}") from error


def with_past(asked: Asked, past: tuple[tuple[str, str], ...], turns: int) -> list[dict[str, Any]]:
    """The messages with the last `turns` whole turns of the past before the question."""
    behave = [message for message in asked.messages if message["role"] == "system"]
    rest = [message for message in asked.messages if message["role"] != "system"]
    kept = past[len(past) - 2 * turns :] if turns else ()
    return [*behave, *({"role": role, "content": content} for role, content in kept), *rest] if past else asked.messages


def fewer(past: tuple[tuple[str, str], ...], turns: int, tokens: int, limit: int) -> int:
    """How many turns to try next: one less, or as few as the letters make likely to fit."""
    kept = past[len(past) - 2 * turns :]
    letters = sum(len(content) for _, content in kept)
    surplus = letters * (1 - limit / tokens) if tokens > limit else 0
    dropped, gone = 0, 0
    while dropped < turns and (not dropped or gone < surplus * 0.8):
        gone += sum(len(content) for _, content in kept[2 * dropped : 2 * dropped + 2])
        dropped += 1
    return turns - dropped
