"""The words of a PDF or DOCX. It runs as a process of its own, under a limit of memory: a hostile file ends it, and nothing else.

`python -m actors.attachments.reader_process` reads the limits as one line of JSON and then the file from stdin; writes JSON to stdout.
"""

import io
import json
import logging
import resource
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse
from pypdf import PdfReader
from pypdf.errors import DependencyError, LimitReachedError, PyPdfError

WORD_NAMESPACE = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
MAX_DOCX_BYTES = 128 << 20
"""Of the document inside the archive, unpacked."""
PARAGRAPH, RUN = f"{WORD_NAMESPACE}p", f"{WORD_NAMESPACE}r"
WHITESPACE_TAGS = {f"{WORD_NAMESPACE}tab": "\t", f"{WORD_NAMESPACE}br": "\n", f"{WORD_NAMESPACE}cr": "\n"}
TEXT_TAGS = {f"{WORD_NAMESPACE}t", *WHITESPACE_TAGS}


class UnreadableDocument(Exception):
    """The file cannot be read: `code`, and why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_document(file_type: str, data: bytes, max_chars: int, max_pages: int) -> str:
    """Raises Unfit("document-broken" · "document-encrypted" · "document-too-long" · "document-too-complex" · "document-empty")."""
    pieces = docx_paragraphs(data) if file_type == "docx" else pdf_pages(data, max_pages)
    text = join_limited(pieces, max_chars).strip()
    if not text:
        raise UnreadableDocument("document-empty", "There is no text in the document. If its pages are scans, send them as pictures.")
    return text


def join_limited(parts: Iterator[str], max_chars: int) -> str:
    found, letters = [], 0
    for piece in parts:
        found.append(piece)
        letters += len(piece) + 1
        if letters > max_chars:
            raise UnreadableDocument("document-too-long", f"The document has more than {max_chars} characters. Send the part that matters.")
    return "\n".join(found)


def pdf_pages(data: bytes, max_pages: int) -> Iterator[str]:
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableDocument(
                "document-encrypted", "The document is protected by a password. Save it without one and send it again."
            )
        if len(reader.pages) > max_pages:
            raise UnreadableDocument("document-too-long", f"The document has {len(reader.pages)} pages; at most {max_pages} are read.")
        for page in reader.pages:
            yield page.extract_text()
    except LimitReachedError as error:
        raise UnreadableDocument("document-too-complex", f"The document unpacks to more than is read: {error}.") from error
    except DependencyError as error:
        raise UnreadableDocument("document-encrypted", f"The document is encrypted in a way that is not read: {error}.") from error
    except (PyPdfError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, OSError) as error:
        raise UnreadableDocument("document-broken", f"The PDF is damaged or cut short: {error}.") from error


def docx_paragraphs(data: bytes) -> Iterator[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            part = archive.getinfo("word/document.xml")
            if part.flag_bits & 1:
                raise UnreadableDocument(
                    "document-encrypted", "The document is protected by a password. Save it without one and send it again."
                )
            if part.file_size > MAX_DOCX_BYTES:
                raise UnreadableDocument(
                    "document-too-complex", f"The document unpacks to {part.file_size} bytes; at most {MAX_DOCX_BYTES} are read."
                )
            with archive.open(part) as file:
                yield from _paragraph_texts(file)
    except DefusedXmlException as error:
        raise UnreadableDocument(
            "document-broken", f"The DOCX defines entities, as no word processor does: {type(error).__name__}."
        ) from error
    except (zipfile.BadZipFile, ParseError, KeyError, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise UnreadableDocument("document-broken", f"The DOCX is damaged or cut short: {error}.") from error


def _paragraph_texts(file: Any) -> Iterator[str]:
    """A paragraph's text when the paragraph ends; what is read is let go."""
    held: list[str] = []
    for _, element in iterparse(file):
        if element.tag == RUN:
            held.extend(WHITESPACE_TAGS.get(child.tag) or child.text or "" for child in element if child.tag in TEXT_TAGS)
        elif element.tag == PARAGRAPH:
            yield "".join(held)
            held.clear()
            element.clear()


def main() -> None:
    limits = json.loads(sys.stdin.buffer.readline())
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"], limits["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()  # A damaged file may draw a warning for every byte.
    try:
        answer = {"text": read_document(limits["kind"], sys.stdin.buffer.read(), limits["max_letters"], limits["max_pages"])}
    except UnreadableDocument as unfit:
        answer = {"code": unfit.code, "message": str(unfit)}
    except (MemoryError, RecursionError):
        answer = {"code": "document-too-complex", "message": "Reading the document takes more memory than it may."}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
