"""Reports on files that are sent compressed though that was not asked for: forms of deflate, padding, size, time."""

import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from bus.errors import TemporaryError
from bus.storage.http_download import read_body
from tests.support.model_hub import WEIGHTS, Fetch, Hub, answer, fetch_asset, open_hub, refusal


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with open_hub() as opened:
        yield opened


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    return partial(fetch_asset, tmp_path)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate"])
async def test_compressed_response_is_read_though_not_asked_for(hub: Hub, fetch: Fetch, encoding: str, members: int) -> None:
    """ultralytics/ultralytics #26251, huggingface/huggingface_hub #3269, pydantic/pydantic-ai #7209: S3 sends objects with their stored
    Content-Encoding whatever is asked for; one of several members was cut after the first.
    """
    compress = zlib.compress if encoding == "deflate" else gzip.compress
    size = len(WEIGHTS) // members + 1
    parts = [WEIGHTS[start : start + size] for start in range(0, len(WEIGHTS), size)]
    hub.pages["/a"] = answer("200 OK", b"".join(map(compress, parts)), Content_Encoding=encoding)
    assert await fetch(f"{hub.url}/a") == WEIGHTS
    assert "accept-encoding: identity" in hub.heads[0].lower()


async def test_compressed_response_is_bounded_and_whole(hub: Hub, fetch: Fetch) -> None:
    """A small response that becomes large, one that ends early, one of very many members, one that is no gzip, and other encodings."""
    hub.pages |= {
        "/bomb": answer("200 OK", gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"),
        "/cut": answer("200 OK", gzip.compress(WEIGHTS)[:-9], Content_Encoding="gzip"),
        "/many": answer("200 OK", gzip.compress(b"") * 5000, Content_Encoding="gzip"),
        "/none": answer("200 OK", WEIGHTS, Content_Encoding="gzip"),
        "/br": answer("200 OK", WEIGHTS, Content_Encoding="br"),
        "/two": answer("200 OK", WEIGHTS, Content_Encoding="gzip, gzip"),
    }
    await refusal(fetch, f"{hub.url}/bomb", "asset-too-large")
    with pytest.raises(TemporaryError, match="before its end"):
        await fetch(f"{hub.url}/cut")
    for path, part in [("many", "members"), ("none", "Content-Encoding"), ("br", "'br'"), ("two", "'gzip, gzip'")]:
        assert part in await refusal(fetch, f"{hub.url}/{path}"), path


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("deflate", raw_deflate(WEIGHTS)),
        ("deflate", raw_deflate(bytes(3 << 20))),
        ("gzip", gzip.compress(WEIGHTS) + bytes(1000)),
        ("gzip", gzip.compress(WEIGHTS) + bytes(8) + gzip.compress(WEIGHTS) + bytes(3)),
        ("deflate", zlib.compress(WEIGHTS) + bytes(1)),
    ],
)
async def test_deflate_without_header_and_padding_are_read(hub: Hub, fetch: Fetch, encoding: str, body: bytes) -> None:
    """NeuraLegion/bright-cli #409, aria2/aria2 #2268: servers send `deflate` without zlib's header. libarchive/libarchive #643,
    pauldmccarthy/indexed_gzip #69: zero bytes follow the last member.
    """
    hub.pages["/a"] = answer("200 OK", body, Content_Encoding=encoding)
    data = await fetch(f"{hub.url}/a", max_bytes=4 << 20)
    assert data in (WEIGHTS, WEIGHTS * 2, bytes(3 << 20))
    hub.pages["/cut"] = answer("200 OK", raw_deflate(WEIGHTS)[:-3], Content_Encoding="deflate")
    with pytest.raises(TemporaryError, match="before its end"):
        await fetch(f"{hub.url}/cut")
    hub.pages["/none"] = answer("200 OK", zlib.compress(WEIGHTS)[:20] + WEIGHTS, Content_Encoding="deflate")
    assert "Content-Encoding" in await refusal(fetch, f"{hub.url}/none")


async def test_inflating_leaves_the_process_to_its_other_work() -> None:
    """A chunk of 64 kB that becomes 64 MiB: the other tasks have a turn after each MiB."""
    response = httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=OneChunk(gzip.compress(bytes(64 << 20), 1)))
    task, turns = asyncio.create_task(read_body(response, 100 << 20, "https://hub.example/a")), 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert len(await task) == 64 << 20
    assert turns > 60


class OneChunk(httpx.AsyncByteStream):
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data


async def test_time_limit_holds_while_a_response_is_inflated(hub: Hub, fetch: Fetch) -> None:
    """A response of 1 MB that becomes 1 GB took two seconds under a limit of one."""
    hub.pages["/a"] = answer("200 OK", gzip.compress(bytes(16 << 20), 1) * 60, Content_Encoding="gzip")
    seconds = time.process_time()
    with pytest.raises(TemporaryError, match="TimeoutError"):
        await fetch(f"{hub.url}/a", max_bytes=2 << 30, asset_timeout_seconds=0.3)
    assert time.process_time() - seconds < 1.0


async def test_compressed_bytes_count_too(hub: Hub, fetch: Fetch) -> None:
    """Padding without end, in a response without a length."""
    hub.pages["/a"] = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(WEIGHTS) + bytes(200_000)
    assert hub.url in await refusal(fetch, f"{hub.url}/a", "asset-too-large")
