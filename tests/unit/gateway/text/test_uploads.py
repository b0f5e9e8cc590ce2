"""Uploaded files: identified by content, limited in size, stored as claims."""

import base64
import io
import zipfile
from typing import Any, cast

import pytest

from bus.errors import TemporaryError
from bus.net.data_urls import parse_base64
from bus.storage.claim_store import ClaimStore
from contracts.claim import Claim
from gateway.text.uploads import document_type, image_media_type
from tests.unit.gateway.conftest import OpenFakeGateway

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8


def zip_of(name: str, compression: int = zipfile.ZIP_STORED) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.writestr(name, "x" * 10)
        return file.getvalue()


@pytest.mark.parametrize(
    ("data", "image", "document"),
    [
        (PNG, "image/png", None),
        (b"\xff\xd8\xff\xe0", "image/jpeg", None),
        (b"GIF89a..", "image/gif", None),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp", None),
        (b"RIFF\x10\0\0\0WAVE", None, None),
        (b"%PDF-1.7", None, "pdf"),
        (b"junk before %PDF-1.7", None, "pdf"),
        (zip_of("word/document.xml"), None, "docx"),
        (zip_of("xl/workbook.xml"), None, None),
        (b"PK\x03\x04broken", None, None),
        ("안녕".encode(), None, "txt"),
        ("hello".encode("utf-16"), None, "txt"),
        (b"MZ\0\0", None, None),
        (b"", None, None),
    ],
)
def test_file_type_is_detected_from_content(data: bytes, image: str | None, document: str | None) -> None:
    assert (image_media_type(data), document_type(data)) == (image, document)


@pytest.mark.parametrize("text", ["aGVsbG8=", "data:image/png;base64,aGVsbG8=", "DATA:;base64,aGVs\n bG8="])
def test_base64_is_parsed(text: str) -> None:
    assert parse_base64(text) == b"hello"


@pytest.mark.parametrize("text", ["aGVsb", "%%%", "aGVsbG8=x"])
def test_invalid_base64_is_rejected(text: str) -> None:
    with pytest.raises(ValueError):
        parse_base64(text)


class FakeStore:
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.written = error, list[tuple[bytes, str]]()

    async def write(self, data: bytes, *, tenant: str | None, media_type: str) -> Claim:
        if self.error:
            raise self.error
        self.written.append((data, media_type))
        return Claim(uri="s3://b/x", sha256="ab" * 32, media_type=media_type, size=len(data))


@pytest.mark.parametrize(
    ("image", "store", "status", "detail"),
    [
        (base64.b64encode(b"MZ\0\0").decode(), FakeStore(), 400, "지원하지 않는 파일 형식입니다"),
        ("%%%", FakeStore(), 400, "not base64"),
        (base64.b64encode(PNG * 100).decode(), FakeStore(), 413, "파일 크기가 제한(1000 bytes)를 초과했습니다"),
        (base64.b64encode(PNG).decode(), None, 503, "no store"),
        (base64.b64encode(PNG).decode(), FakeStore(TemporaryError("timeout")), 503, "timeout"),
    ],
)
async def test_rejected_upload_publishes_nothing(
    gateway: OpenFakeGateway, image: str, store: FakeStore | None, status: int, detail: str
) -> None:
    fake_gateway = gateway(store=cast("ClaimStore", store) if store else None, max_upload_bytes=1000)
    response = await fake_gateway.http.post("/vision", json={"message": "x", "image_data": image})
    assert response.status_code == status
    assert detail in response.json()["detail"]
    assert fake_gateway.publisher.messages == []


@pytest.mark.parametrize("as_form", [True, False])
async def test_image_is_stored_and_passed_as_claim(gateway: OpenFakeGateway, as_form: bool) -> None:
    store = FakeStore()
    fake_gateway = gateway({"text": None}, store=cast("ClaimStore", store))
    body: dict[str, Any] = (
        {"data": {"message": "x"}, "files": {"image": ("x.txt", PNG)}}
        if as_form
        else {"json": {"message": "x", "image_data": base64.b64encode(PNG).decode()}}
    )
    await fake_gateway.http.post("/vision", **body, headers={"X-Request-Timeout": "0.01"})
    (command,) = fake_gateway.publisher.commands("text")
    assert store.written == [(PNG, "image/png")]
    assert [picture["claim"]["media_type"] for picture in command["pictures"]] == ["image/png"]
