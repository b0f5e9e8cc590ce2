"""The words of a PDF or DOCX. It runs as a process of its own, under a limit of memory: a hostile file ends it, and nothing else.

`python -m actors.attachments.words` reads the limits as one line of JSON and then the file from stdin; writes JSON to stdout.
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

WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
DOCX_MOST_BYTES = 128 << 20
"""Of the document inside the archive, unpacked."""
PARAGRAPH, RUN = f"{WORD}p", f"{WORD}r"
GAPS = {f"{WORD}tab": "\t", f"{WORD}br": "\n", f"{WORD}cr": "\n"}
SAID = {f"{WORD}t", *GAPS}


class Unfit(Exception):
    """The file cannot be read: `code`, and why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def words(kind: str, data: bytes, max_letters: int, max_pages: int) -> str:
    """Raises Unfit("document-broken" · "document-encrypted" · "document-too-long" · "document-too-complex" · "document-empty")."""
    pieces = paragraphs(data) if kind == "docx" else pages(data, max_pages)
    text = gathered(pieces, max_letters).strip()
    if not text:
        raise Unfit("document-empty", "There is no text in the document. If its pages are scans, send them as pictures.")
    return text


def gathered(pieces: Iterator[str], most: int) -> str:
    found, letters = [], 0
    for piece in pieces:
        found.append(piece)
        letters += len(piece) + 1
        if letters > most:
            raise Unfit("document-too-long", f"The document has more than {most} characters. Send the part that matters.")
    return "\n".join(found)


def pages(data: bytes, max_pages: int) -> Iterator[str]:
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unfit("document-encrypted", "The document is protected by a password. Save it without one and send it again.")
        if len(reader.pages) > max_pages:
            raise Unfit("document-too-long", f"The document has {len(reader.pages)} pages; at most {max_pages} are read.")
        for page in reader.pages:
            yield page.extract_text()
    except LimitReachedError as error:
        raise Unfit("document-too-complex", f"The document unpacks to more than is read: {error}.") from error
    except DependencyError as error:
        raise Unfit("document-encrypted", f"The document is encrypted in a way that is not read: {error}.") from error
    except (PyPdfError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, OSError) as error:
        raise Unfit("document-broken", f"The PDF is damaged or cut short: {error}.") from error


def paragraphs(data: bytes) -> Iterator[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            part = archive.getinfo("word/document.xml")
            if part.flag_bits & 1:
                raise Unfit("document-encrypted", "The document is protected by a password. Save it without one and send it again.")
            if part.file_size > DOCX_MOST_BYTES:
                raise Unfit("document-too-complex", f"The document unpacks to {part.file_size} bytes; at most {DOCX_MOST_BYTES} are read.")
            with archive.open(part) as file:
                yield from _texts(file)
    except DefusedXmlException as error:
        raise Unfit("document-broken", f"The DOCX defines entities, as no word processor does: {type(error).__name__}.") from error
    except (zipfile.BadZipFile, ParseError, KeyError, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise Unfit("document-broken", f"The DOCX is damaged or cut short: {error}.") from error


def _texts(file: Any) -> Iterator[str]:
    """A paragraph's text when the paragraph ends; what is read is let go."""
    held: list[str] = []
    for _, element in iterparse(file):
        if element.tag == RUN:
            held.extend(GAPS.get(child.tag) or child.text or "" for child in element if child.tag in SAID)
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
        answer = {"text": words(limits["kind"], sys.stdin.buffer.read(), limits["max_letters"], limits["max_pages"])}
    except Unfit as unfit:
        answer = {"code": unfit.code, "message": str(unfit)}
    except (MemoryError, RecursionError):
        answer = {"code": "document-too-complex", "message": "Reading the document takes more memory than it may."}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
