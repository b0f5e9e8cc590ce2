"""Images and documents that a client uploads: identified by their content and stored as claims. They are never decoded here."""

from typing import Any

from fastapi import Request

from bus.net.data_urls import parse_base64
from contracts.claim import Claim
from gateway.callers import caller_of
from gateway.json_body import run_parser
from gateway.problems import HttpProblem
from gateway.services import services_of

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
WORD_PART = b"word/document.xml"
"""The file in a DOCX that has its text. An archive lists the names of its files uncompressed."""
MAX_INLINE_CHARS = 256 << 10
"""A longer base64 text is stored, and the command carries a claim on it: a message is limited to 1 MiB."""
UNSUPPORTED_FILE_TYPE = "지원하지 않는 파일 형식입니다. 지원 형식: pdf, docx, txt, png, jpg, jpeg, gif, bmp, webp"


async def store_upload(request: Request, data: bytes, media_type: str) -> dict[str, Any]:
    """Store a file: its claim, as a field of a command. Raises HttpProblem(413), TemporaryError."""
    check_upload_size(request, len(data))
    store = services_of(request).require_store()
    claim = await store.write(data, tenant=caller_of(request), media_type=media_type)
    return {"claim": claim.model_dump(mode="json", exclude_none=True)}


async def store_base64(request: Request, text: str, tenant: str | None) -> Claim:
    """Store a file that a body contains as base64. Raises HttpProblem(400, 413, 503), TemporaryError."""
    data = await decode_base64(request, text)
    check_upload_size(request, len(data))
    media_type = image_media_type(data) or "application/octet-stream"
    return await services_of(request).require_store().write(data, tenant=tenant, media_type=media_type)


def check_upload_size(request: Request, size: int) -> None:
    """Raises HttpProblem(413) above MAX_UPLOAD_BYTES."""
    limit = services_of(request).settings.max_upload_bytes
    if size > limit:
        raise HttpProblem(413, "file-too-large", f"파일 크기가 제한({limit} bytes)를 초과했습니다")


async def decode_base64(request: Request, text: str) -> bytes:
    """Decode base64, with or without a `data:` prefix. Raises HttpProblem(400, 413)."""
    check_upload_size(request, len(text) // 4 * 3 - 2)
    try:
        return await run_parser(parse_base64, text, size=len(text))
    except ValueError as error:
        raise HttpProblem(400, "not-base64", f"the file is not base64: {error}") from error


def image_media_type(data: bytes) -> str | None:
    """The media type of an image; None for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((media_type for signature, media_type in IMAGE_SIGNATURES.items() if data.startswith(signature)), None)


def document_type(data: bytes) -> str | None:
    """`pdf`, `docx` or `txt`; None for anything else. The worker that reads the document checks it more closely."""
    if b"%PDF-" in data[:1024]:
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        return "docx" if WORD_PART in data else None
    is_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return "txt" if data and (is_utf16 or b"\0" not in data) and not image_media_type(data) else None
