"""The files of a job: the claims in its results, and the responses that send them."""

import asyncio
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import quote

import pytest

from bus.errors import PermanentError, TemporaryError
from bus.storage.claim_store import ClaimStore
from contracts.job import Job
from gateway.jobs.files import find_claims, job_files
from tests.unit.gateway.conftest import OpenFakeGateway

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def claim(uri: str, **fields: Any) -> dict[str, Any]:
    return {"uri": uri, "sha256": "ab" * 32, "media_type": "image/png", "size": 3} | fields


def job(**results: Any) -> dict[str, Any]:
    steps = [{"step": step, "state": "completed", "at": NOW.isoformat(), "result": result} for step, result in results.items()]
    now = NOW.isoformat()
    return {"job_id": "j-1", "state": "completed", "created_at": now, "updated_at": now, "steps": steps, "result": {"files": []}}


@pytest.mark.parametrize(
    ("value", "uris"),
    [
        ({"images": [claim("s3://b/1.png"), claim("s3://b/2.png")]}, ["s3://b/1.png", "s3://b/2.png"]),
        ({"a": {"b": [{"c": claim("s3://b/1.png")}]}}, ["s3://b/1.png"]),
        (claim("s3://b/1.png", sha256="short"), []),
        ({"uri": "s3://b/1.png"}, []),
        (None, []),
        ("s3://b/1.png", []),
    ],
)
def test_claims_are_found_at_any_depth(value: Any, uris: list[str]) -> None:
    assert [found.uri for found in find_claims(value)] == uris


def test_file_is_named_after_last_segment_and_later_one_wins() -> None:
    results = {"image": claim("s3://b/x/a%20b.png"), "watermark": claim("s3://b/y/out.png"), "upload": claim("https://cdn/z/out.png")}
    files = job_files(Job.model_validate(job(**results)))
    assert {name: file.uri for name, file in files.items()} == {"a b.png": "s3://b/x/a%20b.png", "out.png": "https://cdn/z/out.png"}


class FakeStore:
    """Reads `outcome`: bytes, or an exception to raise."""

    def __init__(self, outcome: bytes | Exception) -> None:
        self.outcome = outcome

    async def read_recorded(self, claim: Any, *, tenant: str | None) -> bytes:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("file", "outcome", "status", "title"),
    [
        (claim("s3://b/a.png"), b"abc", 200, None),
        (claim("s3://b/other.png"), b"abc", 404, "file-unknown"),
        (claim("s3://b/a.png", size=2000), b"abc", 413, "file-too-large"),
        (claim("s3://b/a.png"), TemporaryError("timeout"), 503, "store-away"),
        (claim("s3://b/a.png"), PermanentError("claim-missing", "gone"), 404, "claim-missing"),
        (claim("s3://b/a.png"), PermanentError("claim-corrupt", "sha256"), 502, "claim-corrupt"),
        (claim("s3://b/a.png"), PermanentError("claim-refused", "elsewhere"), 404, "claim-refused"),
        (claim("https://cdn/a.png"), PermanentError("claim-refused", "elsewhere"), 307, None),
    ],
)
async def test_file_is_sent_or_redirected_or_failure_is_problem(
    gateway: OpenFakeGateway, file: dict[str, Any], outcome: bytes | Exception, status: int, title: str | None
) -> None:
    store = cast("ClaimStore", FakeStore(outcome))
    http = gateway({"job.get": job(upload=file)}, store=store, max_file_bytes=1000).http
    response = await http.get("/jobs/j-1/files/a.png")
    assert (response.status_code, response.json()["title"] if title else None) == (status, title)
    if status == 200:
        assert (response.content, response.headers["content-disposition"]) == (b"abc", "inline")
        unchanged = await http.get("/jobs/j-1/files/a.png", headers={"If-None-Match": response.headers["etag"]})
        assert unchanged.status_code == 304
    if status == 503:
        assert response.headers["retry-after"] == "5"
    if status == 307:
        assert response.headers["location"] == "https://cdn/a.png"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.bin", 'attachment; filename="a.bin"'),
        ('a"b.bin', "attachment; filename=\"a_b.bin\"; filename*=UTF-8''a%22b.bin"),
        ("그림 1.bin", "attachment; filename=\"__ 1.bin\"; filename*=UTF-8''%EA%B7%B8%EB%A6%BC%201.bin"),
        ("a\r\nX: y.bin", "attachment; filename=\"a__X_ y.bin\"; filename*=UTF-8''a%0D%0AX%3A%20y.bin"),
    ],
)
async def test_file_name_is_sent_as_rfc_6266(gateway: OpenFakeGateway, name: str, expected: str) -> None:
    file = claim(f"s3://b/{quote(name)}", media_type="application/octet-stream")
    http = gateway({"job.get": job(upload=file)}, store=cast("ClaimStore", FakeStore(b"abc"))).http
    response = await http.get(f"/jobs/j-1/files/{quote(name)}")
    assert (response.status_code, response.headers["content-disposition"]) == (200, expected)


async def test_memory_of_a_file_is_held_until_it_has_been_sent(gateway: OpenFakeGateway) -> None:
    fake = gateway({"job.get": job(upload=claim("s3://b/a.png"))}, store=cast("ClaimStore", FakeStore(b"abc")))
    sent, held = asyncio.Event(), list[int]()

    async def send(message: Any) -> None:
        held.append(fake.services.file_memory.held_bytes)
        if message["type"] == "http.response.body" and message.get("body"):
            await sent.wait()

    async def receive() -> Any:
        await sent.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/jobs/j-1/files/a.png",
        "raw_path": b"/jobs/j-1/files/a.png",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("::1", 1),
    }
    serving = asyncio.create_task(fake.app(scope, receive, send))
    async with asyncio.timeout(5):
        while len(held) < 2:
            await asyncio.sleep(0.01)
    assert fake.services.file_memory.held_bytes == 3
    sent.set()
    await asyncio.wait_for(serving, 5)
    assert fake.services.file_memory.held_bytes == 0


async def test_file_without_store_is_503(gateway: OpenFakeGateway) -> None:
    response = await gateway({"job.get": job(upload=claim("s3://b/a.png"))}).http.get("/jobs/j-1/files/a.png")
    assert (response.status_code, response.json()["title"]) == (503, "store-missing")
