"""What a client sends beside words: taken in by its content and size, put into the store as a claim. It is never decoded here."""

import base64
import binascii
import io
import zipfile
from typing import Any

from anyio import to_thread
from fastapi import Request

from bus.errors import TemporaryError
from bus.storage.claim_store import ClaimStore
from gateway.problems import HttpProblem

IMAGE_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
}
DOCUMENT_MEDIA_TYPES = {
    "pdf": "application/pdf",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "txt": "text/plain",
}
UNSUPPORTED_FILE_TYPE = "지원하지 않는 파일 형식입니다. 지원 형식: pdf, docx, txt, png, jpg, jpeg, gif, bmp, webp"


async def store_upload(request: Request, data: bytes, media_type: str) -> dict[str, Any]:
    """The claim on a file, as a command carries it. Raises Refused(413 · 503)."""
    check_upload_size(request, len(data))
    store: ClaimStore | None = request.app.state.store
    if store is None:
        raise HttpProblem(503, "store-missing", "this gateway has no store: set STORE_URL as the actors have it")
    try:
        claim = await store.write(data, media_type=media_type)
    except TemporaryError as error:
        raise HttpProblem(503, "store-away", str(error), {"Retry-After": "5"}) from error
    return {"claim": claim.model_dump(mode="json", exclude_none=True)}


def check_upload_size(request: Request, size: int) -> None:
    """Raises Refused(413)."""
    most = request.app.state.settings.max_upload_bytes
    if size > most:
        raise HttpProblem(413, "file-too-large", f"파일 크기가 제한({most} bytes)를 초과했습니다")


async def decode_base64(request: Request, text: str) -> bytes:
    """base64, with or without a `data:` prefix. Raises Refused(400 · 413)."""
    check_upload_size(request, len(text) // 4 * 3 - 2)
    try:
        return await to_thread.run_sync(parse_base64, text)
    except (binascii.Error, ValueError) as error:
        raise HttpProblem(400, "not-base64", f"the file is no base64: {error}") from error


def parse_base64(text: str) -> bytes:
    body = text.partition(",")[2] if text[:5].lower() == "data:" else text
    return base64.b64decode("".join(body.split()), validate=True)


def image_media_type(data: bytes) -> str | None:
    """The media type of a picture; None when the bytes are none."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for mark, kind in IMAGE_SIGNATURES.items() if data.startswith(mark)), None)


def document_type(data: bytes) -> str | None:
    """`pdf`, `docx` or `txt`; None when the bytes are none. The actor that reads it looks again, and closer."""
    if b"%PDF-" in data[:1024]:
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        return "docx" if b"word/" in data or has_word_part(data) else None
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return "txt" if data and (wide or b"\0" not in data) and not image_media_type(data) else None


def has_word_part(data: bytes) -> bool:
    try:
        return "word/document.xml" in zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
