"""A document's words, and what becomes of files that are broken, locked, huge or made to do harm."""

import asyncio
import time
from typing import Any

import psutil
import pytest

from actors.attachments.documents import extract_text
from actors.attachments.file_types import detect_file_type
from actors.settings import AttachmentSettings
from bus.errors import PermanentError
from tests.support.sample_documents import make_docx, make_pdf, make_pdf_bomb

OLD_OFFICE = bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 600
ENTITIES = '<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


def settings(**limits: Any) -> AttachmentSettings:
    return AttachmentSettings.model_validate(limits)


async def fault(data: bytes, **limits: Any) -> PermanentError:
    with pytest.raises(PermanentError) as refused:
        await extract_text(data, settings(**limits))
    return refused.value


@pytest.mark.parametrize(
    ("data", "kind", "words"),
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
async def test_file_type_is_detected_from_content(data: bytes, kind: str, words: str) -> None:
    assert detect_file_type(data) == kind
    assert await extract_text(data, settings()) == words


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
    refused = await fault(data)
    assert refused.code == code
    assert len(str(refused)) > 20


async def test_document_over_limits_is_rejected() -> None:
    """In bytes, letters or pages."""
    assert (await fault(b"x" * 11, MAX_UPLOAD_BYTES=10)).code == "document-too-large"
    for data in (b"x" * 101, make_docx("x" * 60, "y" * 60), make_pdf("x" * 60, "y" * 60)):
        assert (await fault(data, DOCUMENT_MAX_LETTERS=100)).code == "document-too-long"
    assert (await fault(make_pdf("a", "b", "c"), DOCUMENT_MAX_PAGES=2)).code == "document-too-long"


async def test_decompression_bomb_kills_only_reader_process() -> None:
    """A small file that unpacks to more than memory may hold, or that never ends."""
    for data in (make_docx("x" * (200 << 20)), make_pdf_bomb(600)):
        assert len(data) < 2 << 20
        refused = await fault(data, DOCUMENT_MEMORY_BYTES=1 << 28)
        assert refused.code == "document-too-complex", str(refused)
    assert (await fault(make_pdf("Hello"), DOCUMENT_SECONDS=0.01)).code == "document-too-complex"


async def test_reading_keeps_loop_responsive_and_leaves_no_process() -> None:
    """Also when nobody waits for the words any more."""
    long = make_docx(*["word " * 20] * 20_000)
    reading = asyncio.create_task(extract_text(long, settings(DOCUMENT_MAX_LETTERS=1 << 22)))
    lags = []
    while not reading.done():
        before = time.perf_counter()
        await asyncio.sleep(0.01)
        lags.append(time.perf_counter() - before)
    assert len(reading.result()) > 1_000_000
    assert max(lags) < 0.25
    stopped = asyncio.create_task(extract_text(long, settings()))
    await asyncio.sleep(0.1)
    stopped.cancel()
    await asyncio.gather(stopped, return_exceptions=True)
    assert not [child for child in psutil.Process().children() if "actors.attachments.reader_process" in child.cmdline()]
