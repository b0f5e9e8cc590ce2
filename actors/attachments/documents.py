"""The text of a document: its type from its content, then its text, read in a process that is killed when it takes too long."""

import asyncio
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from anyio import to_thread

from actors.attachments.file_types import FileType, decode_text, detect_file_type
from actors.settings import AttachmentSettings
from bus.errors import PermanentError

IMPORT_ROOT = Path(__file__).parents[2]
MAX_CONCURRENT_READERS = 2
"""Reader processes at one time; each may use the memory of its limit."""

log = structlog.get_logger()


@dataclass(frozen=True)
class DocumentReader:
    """Reads documents, few at a time."""

    settings: AttachmentSettings
    semaphore: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT_READERS))

    async def extract_text(self, data: bytes) -> str:
        """The text of a PDF, DOCX or plain text file.

        Raises PermanentError("document-too-large" · "document-unsupported" · "document-broken" · "document-encrypted" ·
        "document-empty" · "document-too-long" · "document-too-complex").
        """
        limit = self.settings.max_upload_bytes
        if len(data) > limit:
            raise PermanentError("document-too-large", f"The document has {len(data)} bytes; at most {limit} are read (MAX_UPLOAD_BYTES).")
        file_type = await to_thread.run_sync(detect_file_type, data)
        if file_type == "txt":
            return await to_thread.run_sync(read_plain_text, data, self.settings.max_chars)
        async with self.semaphore:
            return await run_reader_process(file_type, data, self.settings)


def read_plain_text(data: bytes, max_chars: int) -> str:
    text = decode_text(data).strip()
    if not text:
        raise PermanentError("document-empty", "There is no text in the document.")
    if len(text) > max_chars:
        raise PermanentError(
            "document-too-long", f"The document has {len(text)} characters; at most {max_chars} are read. Send the part that matters."
        )
    return text


async def run_reader_process(file_type: FileType, data: bytes, settings: AttachmentSettings) -> str:
    limits = {
        "kind": file_type,
        "memory_bytes": settings.memory_bytes,
        "max_chars": settings.max_chars,
        "max_pages": settings.max_pages,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "actors.attachments.reader_process"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(IMPORT_ROOT), "PYTHONUTF8": "1"},
    )
    try:
        async with asyncio.timeout(settings.read_seconds):
            stdout, stderr = await process.communicate(json.dumps(limits).encode() + b"\n" + data)
    except TimeoutError:
        message = f"Reading the document takes more than {settings.read_seconds:g} s (DOCUMENT_SECONDS)."
        raise PermanentError("document-too-complex", message) from None
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    return parse_reader_output(stdout, stderr, process.returncode)


def parse_reader_output(stdout: bytes, stderr: bytes, exit_code: int | None) -> str:
    try:
        output = json.loads(stdout)
    except ValueError:
        log.warning("document.reader_died", status=exit_code, stderr=stderr.decode(errors="replace")[-2000:])
        raise PermanentError("document-broken", "The process that read the document died. The document is damaged or malicious.") from None
    if "text" not in output:
        raise PermanentError(output["code"], output["message"])
    return str(output["text"])
