"""The type of a file by its content: PDF, DOCX or plain text. Its name and its announced media type are ignored."""

import codecs
import io
import zipfile
from typing import Literal

from actors.decoding.protocol import Refused

FileType = Literal["pdf", "docx", "txt"]

UNSUPPORTED, BROKEN, ENCRYPTED = "document-unsupported", "document-broken", "document-encrypted"
PDF_HEADER_WINDOW = 1024
"""Bytes in which a PDF's header may start; PDF readers allow other bytes before it."""
OLE_MAGIC = bytes.fromhex("d0cf11e0a1b11ae1")
"""The container format of old Office files, and of new ones that are encrypted."""
BOM_ENCODINGS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
FALLBACK_ENCODINGS = ("utf-8", "cp949")
"""cp949: Korean text files of Windows."""
CONTROL_CHARACTERS = frozenset(map(chr, range(32))) - frozenset("\t\n\v\f\r\x1b")


def detect_file_type(data: bytes) -> FileType:
    """Raises Refused("document-unsupported" · "document-broken" · "document-encrypted")."""
    if b"%PDF-" in data[:PDF_HEADER_WINDOW]:
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        return detect_archive_type(data)
    if data.startswith(OLE_MAGIC):
        return refuse_legacy_office(data)
    decode_text(data)
    return "txt"


def detect_archive_type(data: bytes) -> FileType:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise Refused(BROKEN, f"The file begins as a DOCX but is damaged or cut short: {error}.") from error
    if "word/document.xml" not in names:
        raise Refused(UNSUPPORTED, "The file is an archive, but no DOCX. Send PDF, DOCX or plain text.")
    return "docx"


def refuse_legacy_office(data: bytes) -> FileType:
    if "EncryptedPackage".encode("utf-16-le") in data:
        raise Refused(ENCRYPTED, "The document is protected by a password. Save it without one and send it again.")
    raise Refused(UNSUPPORTED, "The file is an Office document of the old format (DOC). Save it as DOCX or PDF and send it again.")


def decode_text(data: bytes) -> str:
    """Plain text in UTF-8, UTF-16 with a byte order mark, or cp949. Raises Refused("document-unsupported")."""
    encodings = [name for bom, name in BOM_ENCODINGS if data.startswith(bom)] or FALLBACK_ENCODINGS
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not CONTROL_CHARACTERS & set(text):
            return text
    raise Refused(UNSUPPORTED, "The file is neither PDF nor DOCX nor plain text (UTF-8, UTF-16 or cp949).")
