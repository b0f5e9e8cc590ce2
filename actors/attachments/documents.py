"""The text of a document: its type from its content, then its text, read in a process that is killed when it takes too long."""

from dataclasses import dataclass

from actors.decoding.pool import DecoderPool, Job
from actors.settings import AttachmentSettings
from bus.errors import PermanentError

MAX_BYTES_PER_CHAR = 4
DOCUMENTS = DecoderPool(2)
"""Two documents are read at one time; each may use the memory of its limit."""


@dataclass(frozen=True)
class DocumentReader:
    """Reads documents, few at a time."""

    settings: AttachmentSettings

    async def extract_text(self, data: bytes) -> str:
        """The text of a PDF, DOCX or plain text file.

        Raises PermanentError("document-too-large" · "document-unsupported" · "document-broken" · "document-encrypted" ·
        "document-empty" · "document-too-long" · "document-too-complex").
        """
        limit = self.settings.max_upload_bytes
        if len(data) > limit:
            raise PermanentError("document-too-large", f"The document has {len(data)} bytes; at most {limit} are read (MAX_UPLOAD_BYTES).")
        _, text = await DOCUMENTS.decode_async(document_job(self.settings), data)
        return text.decode()


def document_job(settings: AttachmentSettings) -> Job:
    return Job(
        kind="document",
        arguments={"max_chars": settings.max_chars, "max_pages": settings.max_pages},
        cpu_seconds=settings.read_seconds,
        wall_seconds=settings.read_seconds,
        memory_bytes=settings.memory_bytes,
        max_answer_bytes=MAX_BYTES_PER_CHAR * (settings.max_chars + 1),
        broken_code="document-broken",
        costly_code="document-too-complex",
    )
