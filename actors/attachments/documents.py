"""A document's words: its kind by content, then its text, read by a process of its own that is ended when it takes too long."""

import asyncio
import json
import sys
from pathlib import Path

import structlog
from anyio import to_thread

from actors.attachments.file_types import FileType, decode_text, detect_file_type
from actors.settings import AttachmentSettings
from bus.errors import PermanentError

IMPORT_ROOT = Path(__file__).parents[2]
READER_SEMAPHORE = asyncio.Semaphore(2)
"""Documents that are read at one time; each may take the memory of its limit."""

log = structlog.get_logger()


async def extract_text(data: bytes, settings: AttachmentSettings) -> str:
    """The text of a PDF, DOCX or TXT, as far as it has any.

    Raises PermanentError("document-too-large" · "document-unsupported" · "document-broken" · "document-encrypted" · "document-empty" ·
    "document-too-long" · "document-too-complex").
    """
    if len(data) > settings.max_upload_bytes:
        message = f"The document has {len(data)} bytes; at most {settings.max_upload_bytes} are read (MAX_UPLOAD_BYTES)."
        raise PermanentError("document-too-large", message)
    kind = await to_thread.run_sync(detect_file_type, data)
    if kind == "txt":
        return await to_thread.run_sync(read_plain_text, data, settings.max_letters)
    async with READER_SEMAPHORE:
        return await run_reader_process(kind, data, settings)


def read_plain_text(data: bytes, max_chars: int) -> str:
    text = decode_text(data).strip()
    if not text:
        raise PermanentError("document-empty", "There is no text in the document.")
    if len(text) > max_chars:
        raise PermanentError(
            "document-too-long", f"The document has {len(text)} characters; at most {max_chars} are read. Send what matters."
        )
    return text


async def run_reader_process(file_type: FileType, data: bytes, settings: AttachmentSettings) -> str:
    limits = {
        "kind": file_type,
        "memory_bytes": settings.memory_bytes,
        "max_letters": settings.max_letters,
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
            said, wrong = await process.communicate(json.dumps(limits).encode() + b"\n" + data)
    except TimeoutError:
        message = f"Reading the document takes more than {settings.read_seconds:g} s (DOCUMENT_SECONDS)."
        raise PermanentError("document-too-complex", message) from None
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    return parse_reader_output(said, wrong, process.returncode)


def parse_reader_output(stdout: bytes, stderr: bytes, exit_code: int | None) -> str:
    try:
        answer = json.loads(stdout)
    except ValueError:
        log.warning("document.reader_died", status=exit_code, said=stderr.decode(errors="replace")[-2000:])
        raise PermanentError("document-broken", "The document ended the process that read it. It is damaged, or made to do harm.") from None
    if "text" not in answer:
        raise PermanentError(answer["code"], answer["message"])
    return str(answer["text"])
