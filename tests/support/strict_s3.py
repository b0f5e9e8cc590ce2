"""A small S3 server on a real socket, in a thread. A test adds the refusals and the habits of servers other than Amazon's."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from bus.errors import TemporaryError
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings


@dataclass(frozen=True)
class Request:
    """`headers`: names in lower case. `key`: the path after the bucket, decoded."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return unquote(self.path).lstrip("/").partition("/")[2]


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


PICTURE = b"\x89PNG" + bytes(range(256))
Rule = Callable[[Request], Answer | None]


def error(status: int, code: str, message: str = "", **fields: str) -> Answer:
    """S3's error document; `fields`: further elements."""
    parts = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in {"Code": code, "Message": message, **fields}.items())
    return Answer(status, f"<?xml version='1.0'?><Error>{parts}</Error>".encode(), {"Content-Type": "application/xml"})


@dataclass
class StrictS3:
    """`rules`: the first that has an answer is followed. `etag`: makes the ETag of an object. `chunked`: no Content-Length in answers."""

    rules: list[Rule] = field(default_factory=list)
    etag: Callable[[bytes], str] = lambda data: f'"{hashlib.md5(data).hexdigest()}"'
    chunked: bool = False
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def settings(self, **changes: Any) -> StoreSettings:
        fields = {
            "store_url": "s3://media/atelier",
            "AWS_S3_ENDPOINT_URL": self.url,
            "AWS_S3_REGION_NAME": "eu-central-003",
            "aws_access_key_id": "key",
            "aws_secret_access_key": "the-secret-of-this-key",
            "store_timeout_seconds": 5.0,
        }
        return StoreSettings(**(fields | changes))

    def answer(self, request: Request) -> Answer:
        for rule in self.rules:
            if found := rule(request):
                return found
        match request.method:
            case "PUT":
                self.objects[request.key] = request.body, request.headers.get("content-type", "")
                return Answer(200, headers={"ETag": self.etag(request.body)})
            case "DELETE":
                self.objects.pop(request.key, None)
                return Answer(204)
            case _ if not request.key:
                return Answer(200)
            case _ if request.key not in self.objects:
                return error(404, "NoSuchKey")
        data, media_type = self.objects[request.key]
        return Answer(200, data, {"ETag": self.etag(data), "Content-Type": media_type})


@contextmanager
def open_strict_s3(*rules: Rule, **habits: Any) -> Iterator[StrictS3]:
    server = StrictS3(list(rules), **habits)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle_expect_100(self) -> bool:
            """Some servers and proxies send no `100 Continue`: they wait for the body."""
            return True

        def serve(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            request = Request(self.command, url.path, query, headers, body)
            server.requests.append(request)
            self.write(server.answer(request))

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = serve  # noqa: N815

        def write(self, answer: Answer) -> None:
            self.send_response(answer.status)
            chunked = server.chunked and answer.status == 200 and self.command != "HEAD"
            length = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(answer.body))}
            if server.chunked and self.command == "HEAD":
                length = {}
            for name, value in (length | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD" and answer.status != 204:
                self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(answer.body), answer.body) if chunked and answer.body else answer.body)
                if chunked and not answer.body:
                    self.wfile.write(b"0\r\n\r\n")

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def refuse(status: int, code: str, message: str = "", methods: str = "PUT", **fields: str) -> Rule:
    return lambda request: error(status, code, message, **fields) if request.method in methods.split() else None


async def write_and_read(settings: StoreSettings) -> None:
    async with open_claim_store(settings) as claims:
        claim = await claims.write(PICTURE, media_type="image/png", tenant="shop")
        assert await claims.read(claim, tenant="shop") == PICTURE


async def failure_of_write(settings: StoreSettings) -> str:
    async with open_claim_store(settings) as claims:
        with pytest.raises(TemporaryError) as raised:
            await claims.write(PICTURE, media_type="image/png", tenant=None)
    assert raised.value.code == "store-away"
    assert "the-secret-of-this-key" not in str(raised.value)
    return str(raised.value)


def use(monkeypatch: pytest.MonkeyPatch, server: StrictS3) -> None:
    """Name the server in the environment, as for a model's address."""
    for name, value in {
        "AWS_S3_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_S3_REGION_NAME": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
