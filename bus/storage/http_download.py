"""Downloads one file over HTTP, as the servers of model hubs and buckets send it: by way of redirects, and sometimes compressed.

Each address on the way is judged by the transport, and by `check`. Time is bounded by the caller; hops, bytes and headers here.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterator

import httpx

from bus.errors import PermanentError, TemporaryError
from bus.net.addresses import redact_uri
from bus.net.ssrf import readable_host
from bus.storage.asset_errors import (
    MISSING,
    check_size,
    forbidden_error,
    refused_error,
    too_large_error,
    unreachable_error,
)

CHUNK_BYTES = 1 << 20
MAX_REDIRECTS = 5
"""Model hubs need two: to the present name of a repository, and to the server of its files."""
MAX_GZIP_MEMBERS = 64
REDIRECTS = frozenset({301, 302, 303, 307, 308})
RETRYABLE_STATUSES = frozenset({408, 425, 429})
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}

Check = Callable[[httpx.URL], None]


async def download(
    url: httpx.URL,
    transport: httpx.AsyncBaseTransport,
    max_bytes: int,
    *,
    origin: str,
    check: Check = lambda url: None,
    headers: dict[str, str] | None = None,
) -> bytes:
    """GET. `origin`: the address for messages, without secrets. `check`: raises for an address that may not be read.

    `headers` go to this address alone: with them, no redirect is followed. Raises httpx.HTTPError where the server does not respond.
    """
    own_headers = {"Accept-Encoding": "identity"}
    async with httpx.AsyncClient(transport=transport, timeout=10.0, trust_env=False, headers=own_headers) as client:
        for _ in range(MAX_REDIRECTS + 1):
            async with client.stream("GET", url, headers=headers) as response:
                if response.status_code not in REDIRECTS:
                    raise_for_status(response, origin)
                    return await read_body(response, max_bytes, origin)
                if headers:
                    raise refused_error(origin, f"it responded with {response.status_code}; redirects are not followed with a token")
                url = next_address(response, origin)
                check(url)
    raise refused_error(origin, f"it is redirected more than {MAX_REDIRECTS} times")


def next_address(response: httpx.Response, origin: str) -> httpx.URL:
    """Where a redirect leads, which may be relative. Raises PermanentError("asset-refused")."""
    location = response.headers.get("Location", "")
    try:
        url = response.url.join(location) if location else None
    except (httpx.InvalidURL, ValueError):
        url = None
    if url is not None and url.scheme not in ("http", "https"):
        raise refused_error(origin, f"it redirects to an address of the scheme {url.scheme[:20]!r}, not to an https address")
    if url is None or not readable_host(url):
        raise refused_error(origin, f"it responded with {response.status_code} and no readable address to go on to")
    if response.url.scheme == "https" and url.scheme == "http":
        raise refused_error(origin, f"it redirects from https to {redact_uri(str(url))}, which is not an https address")
    return url.copy_with(fragment=None)


def raise_for_status(response: httpx.Response, origin: str) -> None:
    """Raises PermanentError or TemporaryError for any status but 200, or 206 with the whole file."""
    status, authorized = response.status_code, "Authorization" in response.request.headers
    if status in (404, 410):
        raise PermanentError(MISSING, f"{origin} responded with {status}.")
    if status in RETRYABLE_STATUSES or status >= 500:
        raise unreachable_error(f"{origin} responded with {status}")
    if authorized and status == 401:
        raise unreachable_error(f"{origin} responded with 401: GCS_TOKEN is not valid, or no longer")
    if status in (401, 403):
        cure = "GCS_TOKEN may not read it" if authorized else "it is not public; GCS_TOKEN, and for tenants ASSET_BUCKETS, give access"
        raise forbidden_error(origin, f"it responded with {status}" + (f": {cure}" if origin.startswith("gs://") else ""))
    if status == 206 and not is_whole(response.headers.get("Content-Range", "")):
        raise refused_error(origin, "it responded with 206, a part of the file")
    if status not in (200, 206):
        raise refused_error(origin, f"it responded with {status}")


def is_whole(content_range: str) -> bool:
    """Whether `bytes 0-9/10` spans the whole file."""
    span, _, total = content_range.removeprefix("bytes ").partition("/")
    return total.isascii() and total.isdigit() and len(total) <= 20 and span == f"0-{int(total) - 1}"


async def read_body(response: httpx.Response, max_bytes: int, origin: str) -> bytes:
    """The file; one that is compressed, though that was not asked for, is decompressed. The size is checked before and on the way."""
    length = response.headers.get("Content-Length", "")
    check_size(int(length) if length.isascii() and length.isdigit() else 0, origin, max_bytes)
    encodings = [name for part in response.headers.get("Content-Encoding", "").split(",") if (name := part.strip().lower()) != "identity"]
    encodings = [name for name in encodings if name]
    if len(encodings) > 1 or any(name not in WINDOW_BITS for name in encodings):
        raise refused_error(origin, f"it is sent with the Content-Encoding {', '.join(encodings)[:40]!r}, though none was asked for")
    inflater = Inflater(WINDOW_BITS[encodings[0]], origin) if encodings else None
    data, received = bytearray(), 0
    async for chunk in response.aiter_raw(CHUNK_BYTES):
        received += len(chunk)
        for part in inflater.inflate(chunk) if inflater else (chunk,):
            data += part
            if max(len(data), received) > max_bytes:
                raise too_large_error(origin, max_bytes)
            await asyncio.sleep(0)  # One chunk may inflate for seconds: the other work of the process, and the time limit, go on.
    if inflater:
        inflater.check_end()
    return bytes(data)


class Inflater:
    """Decompresses in parts of bounded size. A gzip file may have several members; one that ends early is an interrupted download.

    `deflate` is also sent without zlib's header, and files are padded with zero bytes: both are read.
    """

    def __init__(self, window_bits: int, origin: str) -> None:
        self._window_bits, self._origin = window_bits, origin
        self._decompressor = zlib.decompressobj(window_bits)
        self._members, self._has_begun = 1, False

    def inflate(self, data: bytes) -> Iterator[bytes]:
        try:
            while data:
                if self._decompressor.eof:
                    data = data.lstrip(b"\0")
                    if not data:
                        yield b""
                        return
                    self._begin_member()
                yield self._decompress(data)
                data = self._decompressor.unconsumed_tail or self._decompressor.unused_data
        except zlib.error as error:
            raise refused_error(self._origin, "its bytes are not what its Content-Encoding says") from error

    def _decompress(self, data: bytes) -> bytes:
        try:
            part = self._decompressor.decompress(data, CHUNK_BYTES)
        except zlib.error:
            if self._window_bits != WINDOW_BITS["deflate"] or self._has_begun:
                raise
            self._window_bits = -self._window_bits
            self._decompressor = zlib.decompressobj(self._window_bits)
            part = self._decompressor.decompress(data, CHUNK_BYTES)
        self._has_begun = True
        return part

    def _begin_member(self) -> None:
        self._members += 1
        if self._members > MAX_GZIP_MEMBERS:
            raise refused_error(self._origin, f"it is compressed in more than {MAX_GZIP_MEMBERS} members")
        self._decompressor = zlib.decompressobj(self._window_bits)

    def check_end(self) -> None:
        if not self._decompressor.eof:
            raise TemporaryError(f"{self._origin} ended before its end", code="asset-unreachable")


def describe_page(data: bytes) -> str | None:
    """What a file is that was expected to be weights: a web page, or a pointer of Git LFS. None for any other."""
    start = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not a file: the address is that of a page, or it needs a login"
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "it is a pointer of Git LFS, not the file: name the address from which the file itself is downloaded"
    return None
