"""A document's words, and what becomes of files that are broken, locked, huge or made to do harm."""

import asyncio
import time
from typing import Any

import psutil
import pytest

from actors.attachments.documents import words_of
from actors.attachments.kinds import kind_of
from actors.attachments.settings import AttachmentSettings
from bus.errors import PermanentError
from tests.files import bomb_pdf, docx, pdf

OLD_OFFICE = bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 600
ENTITIES = '<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


def settings(**limits: Any) -> AttachmentSettings:
    return AttachmentSettings.model_validate(limits)


async def fault(data: bytes, **limits: Any) -> PermanentError:
    with pytest.raises(PermanentError) as refused:
        await words_of(data, settings(**limits))
    return refused.value


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (pdf("Hello", "World"), "pdf", "Hello\nWorld"),
        (b"rubbish before it" + pdf("Hello"), "pdf", "Hello"),
        (pdf("Hello", owner="secret"), "pdf", "Hello"),
        (docx("안녕하세요", "a &amp; b"), "docx", "안녕하세요\na & b"),
        ("따뜻한 한 그릇\n".encode(), "txt", "따뜻한 한 그릇"),
        ("\ufeff따뜻한".encode(), "txt", "따뜻한"),
        ("따뜻한".encode("utf-16"), "txt", "따뜻한"),
        ("따뜻한".encode("cp949"), "txt", "따뜻한"),
    ],
)
async def test_the_content_tells_what_a_file_is(data: bytes, kind: str, words: str) -> None:
    assert kind_of(data) == kind
    assert await words_of(data, settings()) == words


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (pdf("Hello", password="secret"), "document-encrypted"),
        (OLD_OFFICE, "document-unsupported"),
        (OLD_OFFICE + "EncryptedPackage".encode("utf-16-le"), "document-encrypted"),
        (pdf("Hello")[:200], "document-broken"),
        (docx("Hello")[:100], "document-broken"),
        (b"PK\x03\x04" + b"x" * 100, "document-broken"),
        (docx("Hello").replace(b"word/document.xml", b"word/somewhat.xml"), "document-unsupported"),
        (docx("&b;" * 10, head=ENTITIES), "document-broken"),
        (docx("<unclosed>"), "document-broken"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "document-unsupported"),
        (b"\x7fELF" + bytes(range(256)), "document-unsupported"),
        (b"", "document-empty"),
        (b" \n ", "document-empty"),
        (docx(), "document-empty"),
        (pdf(""), "document-empty"),
    ],
)
async def test_what_cannot_be_read_says_why(data: bytes, code: str) -> None:
    refused = await fault(data)
    assert refused.code == code
    assert len(str(refused)) > 20


async def test_what_is_too_much_is_refused() -> None:
    """In bytes, letters or pages."""
    assert (await fault(b"x" * 11, MAX_UPLOAD_BYTES=10)).code == "document-too-large"
    for data in (b"x" * 101, docx("x" * 60, "y" * 60), pdf("x" * 60, "y" * 60)):
        assert (await fault(data, DOCUMENT_MAX_LETTERS=100)).code == "document-too-long"
    assert (await fault(pdf("a", "b", "c"), DOCUMENT_MAX_PAGES=2)).code == "document-too-long"


async def test_a_bomb_ends_no_more_than_its_reader() -> None:
    """A small file that unpacks to more than memory may hold, or that never ends."""
    for data in (docx("x" * (200 << 20)), bomb_pdf(600)):
        assert len(data) < 2 << 20
        refused = await fault(data, DOCUMENT_MEMORY_BYTES=1 << 28)
        assert refused.code == "document-too-complex", str(refused)
    assert (await fault(pdf("Hello"), DOCUMENT_SECONDS=0.01)).code == "document-too-complex"


async def test_reading_leaves_the_loop_free_and_no_process_behind() -> None:
    """Also when nobody waits for the words any more."""
    long = docx(*["word " * 20] * 20_000)
    reading = asyncio.create_task(words_of(long, settings(DOCUMENT_MAX_LETTERS=1 << 22)))
    lags = []
    while not reading.done():
        before = time.perf_counter()
        await asyncio.sleep(0.01)
        lags.append(time.perf_counter() - before)
    assert len(reading.result()) > 1_000_000
    assert max(lags) < 0.25
    stopped = asyncio.create_task(words_of(long, settings()))
    await asyncio.sleep(0.1)
    stopped.cancel()
    await asyncio.gather(stopped, return_exceptions=True)
    assert not [child for child in psutil.Process().children() if "actors.attachments.words" in child.cmdline()]
