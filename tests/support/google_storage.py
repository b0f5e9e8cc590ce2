"""Google Cloud Storage's JSON API for one bucket, on a real socket: lists, downloads and access tokens."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.webhook_backend import read_request


@dataclass
class GoogleBucket:
    """`break_off`: close after so many bytes of the next download. `token`: the only one that may read; None: the bucket is public.

    `redirect`: the address that downloads are redirected to. `authorizations`: the header of each request, "" without one.
    """

    objects: dict[str, bytes]
    break_off: int | None = None
    token: str | None = None
    redirect: str = ""
    reads: list[tuple[str, int]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read_request(reader)
                self.authorizations.append(request.headers.get("authorization", ""))
                url = urlsplit(request.path)
                query = parse_qs(url.query)
                if self.token and self.authorizations[-1] != f"Bearer {self.token}":
                    respond(writer, "403 Forbidden" if self.authorizations[-1].startswith("Bearer other") else "401 Unauthorized")
                elif query.get("alt") == ["media"]:
                    await self._media(writer, unquote(url.path.rpartition("/")[2]), request.headers.get("range", ""))
                else:
                    self._list(writer, query["prefix"][0], query.get("pageToken", ["0"])[0])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _list(self, writer: asyncio.StreamWriter, prefix: str, page: str) -> None:
        """One object a page."""
        names = [name for name in sorted(self.objects) if name.startswith(prefix)]
        listed = names[int(page) : int(page) + 1]
        items = [
            {
                "name": name,
                "size": str(len(self.objects[name])),
                "md5Hash": base64.b64encode(hashlib.md5(self.objects[name]).digest()).decode(),
            }
            for name in listed
        ]
        next_page = {"nextPageToken": str(int(page) + 1)} if int(page) + 1 < len(names) else {}
        respond(writer, "200 OK", json.dumps({"items": items} | next_page).encode())

    async def _media(self, writer: asyncio.StreamWriter, name: str, byte_range: str) -> None:
        start = int(byte_range[6:-1]) if byte_range else 0
        self.reads.append((name, start))
        if self.redirect:
            return respond(writer, f"302 Found\r\nLocation: {self.redirect}")
        if name not in self.objects:
            return respond(writer, "404 Not Found")
        body = self.objects[name][start:]
        if self.break_off is None or len(body) <= self.break_off:
            return respond(writer, "206 Partial Content" if byte_range else "200 OK", body)
        writer.write(f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[: self.break_off])
        self.break_off = None
        await writer.drain()
        raise ConnectionError


def respond(writer: asyncio.StreamWriter, status: str, body: bytes = b"") -> None:
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


@asynccontextmanager
async def open_google(objects: dict[str, bytes]) -> AsyncIterator[GoogleBucket]:
    bucket = GoogleBucket(objects)
    server = await asyncio.start_server(bucket.serve, "127.0.0.1", 0)
    bucket.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield bucket
    finally:
        server.close()
