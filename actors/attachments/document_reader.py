"""Reads the text of a document: PDF, DOCX or plain text. It runs in a decoder process, so that a malicious file can end only that."""

import io
import zipfile
from collections.abc import Iterator
from typing import Any

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse
from pypdf import PdfReader
from pypdf.errors import DependencyError, LimitReachedError, PyPdfError

from actors.attachments.file_types import decode_text, detect_file_type
from actors.decoding.protocol import Refused

WORD_NAMESPACE = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
MAX_DOCX_BYTES = 128 << 20
"""Unpacked size of the XML document in the archive."""
PARAGRAPH, RUN = f"{WORD_NAMESPACE}p", f"{WORD_NAMESPACE}r"
WHITESPACE_TAGS = {f"{WORD_NAMESPACE}tab": "\t", f"{WORD_NAMESPACE}br": "\n", f"{WORD_NAMESPACE}cr": "\n"}
TEXT_TAGS = {f"{WORD_NAMESPACE}t", *WHITESPACE_TAGS}


def read_document(data: bytes, max_chars: int, max_pages: int) -> str:
    """Raises Refused.

    Its codes: document-broken, document-encrypted, document-unsupported, document-too-long, document-too-complex, document-empty.
    """
    text = join_limited(_read_parts(data, max_pages), max_chars).strip()
    if not text:
        raise Refused("document-empty", "There is no text in the document. If its pages are scans, send them as pictures.")
    return text


def _read_parts(data: bytes, max_pages: int) -> Iterator[str]:
    match detect_file_type(data):
        case "pdf":
            return pdf_pages(data, max_pages)
        case "docx":
            return docx_paragraphs(data)
        case "txt":
            return iter([decode_text(data).strip()])


def join_limited(parts: Iterator[str], max_chars: int) -> str:
    texts, chars = [], -1  # no line break before the first part
    for text in parts:
        texts.append(text)
        chars += len(text) + 1
        if chars > max_chars:
            raise Refused("document-too-long", f"The document has more than {max_chars} characters. Send the part that matters.")
    return "\n".join(texts)


def pdf_pages(data: bytes, max_pages: int) -> Iterator[str]:
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Refused("document-encrypted", "The document is protected by a password. Save it without one and send it again.")
        if len(reader.pages) > max_pages:
            raise Refused("document-too-long", f"The document has {len(reader.pages)} pages; at most {max_pages} are read.")
        for page in reader.pages:
            yield page.extract_text()
    except LimitReachedError as error:
        raise Refused("document-too-complex", f"The document unpacks to more than is read: {error}.") from error
    except DependencyError as error:
        raise Refused("document-encrypted", f"The document is encrypted in a way that is not supported: {error}.") from error
    except (PyPdfError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, OSError) as error:
        raise Refused("document-broken", f"The PDF is damaged or cut short: {error}.") from error


def docx_paragraphs(data: bytes) -> Iterator[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            part = archive.getinfo("word/document.xml")
            if part.flag_bits & 1:
                raise Refused("document-encrypted", "The document is protected by a password. Save it without one and send it again.")
            if part.file_size > MAX_DOCX_BYTES:
                raise Refused("document-too-complex", f"The document unpacks to {part.file_size} bytes; at most {MAX_DOCX_BYTES} are read.")
            with archive.open(part) as file:
                yield from _paragraph_texts(file)
    except DefusedXmlException as error:
        raise Refused("document-broken", f"The DOCX defines entities, as no word processor does: {type(error).__name__}.") from error
    except (zipfile.BadZipFile, ParseError, KeyError, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise Refused("document-broken", f"The DOCX is damaged or cut short: {error}.") from error


def _paragraph_texts(file: Any) -> Iterator[str]:
    """The text of each paragraph when it ends. Elements that were read are freed."""
    texts: list[str] = []
    for _, element in iterparse(file):
        if element.tag == RUN:
            texts.extend(WHITESPACE_TAGS.get(child.tag) or child.text or "" for child in element if child.tag in TEXT_TAGS)
        elif element.tag == PARAGRAPH:
            yield "".join(texts)
            texts.clear()
            element.clear()
