"""The text of documents, and the errors of files that are damaged, encrypted, too large or malicious."""

import asyncio
import time
from typing import Any

import psutil
import pytest

from actors.attachments.documents import DocumentReader
from actors.attachments.file_types import detect_file_type
from actors.settings import AttachmentSettings
from bus.errors import PermanentError
from tests.support.sample_documents import make_docx, make_pdf, make_pdf_bomb

OLD_OFFICE = bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 600
ENTITIES = '<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


async def extract_text(data: bytes, **limits: Any) -> str:
    return await DocumentReader(AttachmentSettings.model_validate(limits)).extract_text(data)


async def extraction_error(data: bytes, **limits: Any) -> PermanentError:
    with pytest.raises(PermanentError) as raised:
        await extract_text(data, **limits)
    return raised.value


@pytest.mark.parametrize(
    ("data", "file_type", "text"),
    [
        (make_pdf("Hello", "World"), "pdf", "Hello\nWorld"),
        (b"rubbish before it" + make_pdf("Hello"), "pdf", "Hello"),
        (make_pdf("Hello", owner_password="secret"), "pdf", "Hello"),
        (make_docx("안녕하세요", "a &amp; b"), "docx", "안녕하세요\na & b"),
        ("따뜻한 한 그릇\n".encode(), "txt", "따뜻한 한 그릇"),
        ("\ufeff따뜻한".encode(), "txt", "따뜻한"),
        ("따뜻한".encode("utf-16"), "txt", "따뜻한"),
        ("따뜻한".encode("cp949"), "txt", "따뜻한"),
    ],
)
async def test_file_type_is_detected_from_content(data: bytes, file_type: str, text: str) -> None:
    assert detect_file_type(data) == file_type
    assert await extract_text(data) == text


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (make_pdf("Hello", password="secret"), "document-encrypted"),
        (OLD_OFFICE, "document-unsupported"),
        (OLD_OFFICE + "EncryptedPackage".encode("utf-16-le"), "document-encrypted"),
        (make_pdf("Hello")[:200], "document-broken"),
        (make_docx("Hello")[:100], "document-broken"),
        (b"PK\x03\x04" + b"x" * 100, "document-broken"),
        (make_docx("Hello").replace(b"word/document.xml", b"word/somewhat.xml"), "document-unsupported"),
        (make_docx("&b;" * 10, prologue=ENTITIES), "document-broken"),
        (make_docx("<unclosed>"), "document-broken"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "document-unsupported"),
        (b"\x7fELF" + bytes(range(256)), "document-unsupported"),
        (b"", "document-empty"),
        (b" \n ", "document-empty"),
        (make_docx(), "document-empty"),
        (make_pdf(""), "document-empty"),
    ],
)
async def test_unreadable_document_names_reason(data: bytes, code: str) -> None:
    error = await extraction_error(data)
    assert error.code == code
    assert len(str(error)) > 20


async def test_document_over_limits_is_rejected() -> None:
    """In bytes, characters or pages."""
    assert (await extraction_error(b"x" * 11, MAX_UPLOAD_BYTES=10)).code == "document-too-large"
    assert await extract_text(b"x" * 100, DOCUMENT_MAX_LETTERS=100) == "x" * 100
    for data in (b"x" * 101, make_docx("x" * 60, "y" * 60), make_pdf("x" * 60, "y" * 60)):
        assert (await extraction_error(data, DOCUMENT_MAX_LETTERS=100)).code == "document-too-long"
    assert (await extraction_error(make_pdf("a", "b", "c"), DOCUMENT_MAX_PAGES=2)).code == "document-too-long"


async def test_decompression_bomb_kills_only_reader_process() -> None:
    """A small file that unpacks to more than the memory limit, or that takes too long."""
    for data in (make_docx("x" * (200 << 20)), make_pdf_bomb(600)):
        assert len(data) < 2 << 20
        error = await extraction_error(data, DOCUMENT_MEMORY_BYTES=1 << 28)
        assert error.code == "document-too-complex", str(error)
    assert (await extraction_error(make_docx(*["word " * 20] * 20_000), DOCUMENT_SECONDS=0.01)).code == "document-too-complex"


def decoder_seconds() -> dict[int, float]:
    """The processor time of each decoder process of this one, by its process id."""
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return {child.pid: child.cpu_times().user for child in children if "actors.decoding.process" in child.cmdline()}


async def test_reading_keeps_loop_responsive_and_leaves_no_process() -> None:
    """Also when callers are cancelled: their processes are killed, and the next document does not wait for them."""
    document = make_docx(*["word " * 20] * 20_000)
    reading = asyncio.create_task(extract_text(document, DOCUMENT_MAX_LETTERS=1 << 22))
    lags = []
    while not reading.done():
        before = time.perf_counter()
        await asyncio.sleep(0.01)
        lags.append(time.perf_counter() - before)
    assert len(reading.result()) > 1_000_000
    assert max(lags) < 0.25
    before = decoder_seconds()
    slow = [asyncio.create_task(extract_text(make_docx(*["word " * 20] * 200_000), DOCUMENT_MAX_LETTERS=1 << 28)) for _ in range(2)]
    while len(busy := {pid for pid, seconds in decoder_seconds().items() if seconds > before.get(pid, 0.0) + 0.5}) < 2:
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in slow)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert await extract_text(b"text") == "text"
    assert not decoder_seconds().keys() & busy
