"""The console's gallery, list of jobs and order form: each tenant sees and uses its own pictures alone."""

import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from bus.settings import BusSettings
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from tests.support.broker_client import StartWorker
from tests.support.gateway_app import JOB_ACTORS, open_gateway, order_body, parse_events, wait_until_job_ended

KEYS = {name: f"{name}-{'k' * 32}" for name in ("shop", "office", "watch")}
SECRET = "a secret harbour"
UNKNOWN = "not among the files of your jobs"


@dataclass
class Visitor:
    """A browser with a session in the console of the gateway that `http` calls."""

    http: httpx.AsyncClient
    csrf: str = ""

    async def log_in(self, name: str) -> None:
        fields = {"csrf": csrf_of(await self.http.get("/console/login")), "key": KEYS[name]}
        assert (await self.http.post("/console/login", data=fields)).status_code == 303
        self.csrf = csrf_of(await self.http.get("/console/make"))

    async def order(self, files: dict[str, bytes] | None = None, **fields: str) -> httpx.Response:
        uploads = {name: (name, data) for name, data in (files or {}).items()} or {"mask": ("", b"")}
        return await self.http.post("/console/make", data={"csrf": self.csrf, "prompt": "x"} | fields, files=uploads)

    async def pages(self) -> str:
        """The text of the pages that list jobs and pictures."""
        answers = [await self.http.get(path) for path in ("/console/gallery", "/console/jobs")]
        assert [answer.status_code for answer in answers] == [200, 200]
        return "".join(answer.text for answer in answers)


def csrf_of(page: httpx.Response) -> str:
    match = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
    assert match
    return match[1]


def key(name: str) -> dict[str, str]:
    return {"X-API-Key": KEYS[name]}


@pytest.fixture
async def http(bus_settings: BusSettings, store_folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Without cookies; each visitor has a client of its own at the same gateway."""
    keys = " ".join(f"{name}:{value}" for name, value in KEYS.items())
    async with open_gateway(bus_settings, store_folder, api_keys=keys, operators="watch", question_seconds=3) as client:
        yield client


@asynccontextmanager
async def visitors(http: httpx.AsyncClient, *names: str) -> AsyncIterator[list[Visitor]]:
    async with AsyncExitStack() as stack:
        opened = []
        for name in names:
            client = httpx.AsyncClient(transport=http._transport, base_url="http://localhost", timeout=30)
            opened.append(Visitor(await stack.enter_async_context(client)))
            await opened[-1].log_in(name)
        yield opened


async def make_picture(http: httpx.AsyncClient, tenant: str, prompt: str = SECRET) -> dict[str, Any]:
    """A finished job of the tenant, with the prompt."""
    submitted = await http.post("/jobs", json=order_body(prompt), params={"wait": 20}, headers=key(tenant))
    http.headers.update(key(tenant))
    return await wait_until_job_ended(http, submitted.json()["job_id"])


def file_names(job: dict[str, Any]) -> dict[str, str]:
    """The names of the job's picture and of its thumbnail."""
    result = job["result"]
    return {name: result[name][0]["uri"].rpartition("/")[2] for name in ("files", "thumbnails")}


def png(color: str) -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(picture, "PNG")
    return picture.getvalue()


async def source_address(http: httpx.AsyncClient, ordered: httpx.Response, tenant: str) -> str:
    """Where the picture lies that an order of the console starts from."""
    job_id = ordered.headers["location"].rpartition("=")[2]
    http.headers.update(key(tenant))
    await wait_until_job_ended(http, job_id)
    accepted = parse_events((await http.get(f"/jobs/{job_id}/events")).text)[0]
    address: str = json.loads(accepted["data"])["result"]["order"]["edit"]["image"]["uri"]
    return address


async def test_pictures_and_prompts_of_another_tenant_are_not_shown(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    """In the gallery and the list; their files are a 404. An operator's list has all jobs, the gallery its own pictures alone."""
    async with start_worker(*JOB_ACTORS), visitors(http, "shop", "office", "watch") as (shop, office, watch):
        job = await make_picture(http, "shop")
        thumbnail = f"/console/jobs/{job['job_id']}/files/{file_names(job)['thumbnails']}"
        own, foreign = await shop.pages(), await office.pages()
        files = [await visitor.http.get(thumbnail) for visitor in (shop, office, watch)]
        gallery, jobs = [(await watch.http.get(f"/console/{page}")).text for page in ("gallery", "jobs")]
    assert (own.count(thumbnail), own.count(f">{SECRET}<")) == (2, 2)
    assert (SECRET in foreign, job["job_id"] in foreign) == (False, False)
    assert [file.status_code for file in files] == [200, 404, 200]
    assert (SECRET in gallery, SECRET in jobs) == (False, True)
    with Image.open(io.BytesIO(files[0].content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (128, 128))
    assert files[0].headers["cache-control"] == "private, max-age=31536000, immutable"


async def test_order_starts_from_own_picture_only(http: httpx.AsyncClient, start_worker: StartWorker, store_folder: Path) -> None:
    """Another tenant's picture counts as unknown, and nothing is published. An operator gets a copy of its own."""
    async with start_worker(*JOB_ACTORS), visitors(http, "shop", "office", "watch") as (shop, office, watch):
        job = await make_picture(http, "shop")
        reference = f"{job['job_id']}/{file_names(job)['files']}"
        accepted, refused, by_operator = [await visitor.order(source_ref=reference) for visitor in (shop, office, watch)]
        for wrong in ("", "/", "no-job/x.png", f"{job['job_id']}/none.png", f"{job['job_id']}/"):
            answer = await shop.order(source_ref=wrong, strength="0.5")
            assert answer.status_code == 422, wrong
        listed = (await office.http.get("/console/jobs")).text
        addresses = {name: await source_address(http, order, name) for name, order in (("shop", accepted), ("watch", by_operator))}
    assert (accepted.status_code, refused.status_code, by_operator.status_code) == (303, 422, 303)
    assert UNKNOWN in refused.text
    assert "No job matches" in listed
    for name, address in addresses.items():
        assert address.startswith(f"{store_folder.as_uri()}/tenants/{name}/")


async def test_forged_claim_of_an_order_opens_no_file(http: httpx.AsyncClient, start_worker: StartWorker, store_folder: Path) -> None:
    """The claims of an order are its client's: one on a picture of another tenant, or of none, is no file, and no order starts from it."""
    async with start_worker(*JOB_ACTORS), visitors(http, "office") as (office,):
        job = await make_picture(http, "shop")
        async with open_claim_store(StoreSettings(store_url=store_folder.as_uri())) as store:
            own = await store.write(b"\x89PNG\r\n\x1a\n", tenant=None, media_type="image/png", generated=True)
        for claim in (job["result"]["files"][0], own.model_dump(exclude_none=True)):
            answer = await http.post("/jobs", json=order_body("x", edit={"image": claim}), headers=key("office"))
            job_id, name = answer.json()["job_id"], "edit.image"
            http.headers.update(key("office"))
            await wait_until_job_ended(http, job_id)
            assert (await office.http.get(f"/console/jobs/{job_id}/files/{name}")).status_code == 404
            ordered = await office.order(source_ref=f"{job_id}/{name}")
            assert (ordered.status_code, UNKNOWN in ordered.text) == (422, True)


async def test_form_of_an_order_has_its_pictures_and_kept_values(
    http: httpx.AsyncClient, start_worker: StartWorker, store_folder: Path
) -> None:
    """The pictures are shown by their place in the order, and the next order starts from each of them again."""
    async with (
        start_worker(*JOB_ACTORS),
        visitors(http, "shop") as (shop,),
        open_claim_store(StoreSettings(store_url=store_folder.as_uri())) as store,
    ):
        pictures = {name: png(name) for name in ("navy", "white")}
        claims = [await store.write(data, tenant="shop", media_type="image/png", generated=True) for data in pictures.values()]
        edit = dict(zip(("image", "mask"), [claim.model_dump(exclude_none=True) for claim in claims], strict=True))
        answer = await http.post("/jobs", json=order_body("x", edit=edit, loras=[{"name": "ink", "required": False}]), headers=key("shop"))
        job_id = answer.json()["job_id"]
        http.headers.update(key("shop"))
        await wait_until_job_ended(http, job_id)
        shown = [(await shop.http.get(f"/console/jobs/{job_id}/files/edit.{part}")).content for part in ("image", "mask")]
        page = (await shop.http.get(f"/console/make?job={job_id}")).text
        again = await shop.order(source_ref=f"{job_id}/edit.image", mask_ref=f"{job_id}/edit.mask")
        address = await source_address(http, again, "shop")
    assert shown == list(pictures.values())
    for name, value in {"mask_ref": f"{job_id}/edit.mask", "lora_0_required": "False", "lora_0_of": "ink"}.items():
        assert f'name="{name}" value="{value}"' in page
    assert Path(urlsplit(address).path).read_bytes() == pictures["navy"]


async def test_uploaded_picture_is_stored_for_its_tenant_within_the_limits(
    bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker
) -> None:
    """A file above MAX_UPLOAD_BYTES, a text, a fourth file, and a wrong value for a picture are refused; what is refused is not stored."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(picture, "PNG")
    keys = f"shop:{KEYS['shop']}"
    async with (
        open_gateway(bus_settings, store_folder, api_keys=keys, max_upload_bytes=5000, question_seconds=3) as http,
        start_worker(*JOB_ACTORS),
        visitors(http, "shop") as (shop,),
    ):
        large, text = await shop.order({"source": b"\x89PNG\r\n\x1a\n" + b"x" * 5000}), await shop.order({"source": b"no picture"})
        many = await shop.order({name: picture.getvalue() for name in ("source", "mask", "control", "other")})
        both = await shop.order({name: picture.getvalue() for name in ("source", "control")}, control_model="canny")
        values = [{"strength": "2"}, {"strength": "much"}, {"control_model": "x" * 201}, {"control_model": "canny", "control_scale": "9"}]
        wrong = [await shop.order({"source" if "strength" in each else "control": picture.getvalue()}, **each) for each in values]
        stored_before = [path for path in store_folder.rglob("*") if path.is_file()]
        accepted = await shop.order({"source": picture.getvalue(), "mask": picture.getvalue()}, strength="0.5")
    assert [answer.status_code for answer in (large, text, many, both, *wrong)] == [422, 422, 400, 422, *[422] * 4]
    assert "MAX_UPLOAD_BYTES" in large.text
    assert stored_before == []
    assert accepted.status_code == 303
    assert [path for path in (store_folder / "tenants" / "shop").rglob("*") if path.is_file() and path.read_bytes() == picture.getvalue()]
