"""Every argument of every step, filled by the tenant `office` with what belongs to `shop`: nothing of the shop is read or changed.

The broker, the database, the store, the actors and the backend are real, the models tiny or behind a local server. Each argument has a
rule in RULES; a new one without a rule fails the first test. The second test is the proof that the observations can fail: the shop itself
gets what the office does not.
"""

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from actors import consult, conversations, image, judge, moderate, overlay, text, upload, validate, watermark, webhook
from actors.engines.diffusion.tiny_stable_diffusion import write_tiny_diffusion, write_tiny_lora
from bus.amqp.request_reply import ReplyFault, RequestClient
from bus.settings import BusSettings
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from contracts.claim import Claim
from contracts.steps import COMMANDS
from tests.support.command_arguments import argument_paths, command_with
from tests.support.fake_openai_server import FakeOpenAiServer, open_fake_openai_server
from tests.support.source_system import SourceDatabase, open_gateway_client, open_source_database
from tests.support.webhook_backend import WebhookBackend, open_webhook_backend

pytestmark = [pytest.mark.models, pytest.mark.timeout(900)]

RULES = {
    "claim": "watermark.images[] upload.images[] consult.picture consult.pictures[] validate.image validate.images[] judge.image "
    "judge.images[] judge.bare_image overlay.images[] text.messages[].content[].picture.claim text.pictures[].claim text.documents[].claim "
    "image.edit.image image.edit.mask image.control.image moderate.image moderate.images[]",
    "address": "image.lora.uri image.loras[].uri image.signature.image_uri watermark.signature.image_uri webhook.base_url "
    "webhook.result_url webhook.result_urls[] validate.asset_url "
    "judge.render_asset_url moderate.image_urls[] text.messages[].content[].picture.url text.pictures[].url",
    "name": "upload.name image.model image.lora.name image.lora.sha256 image.loras[].name image.loras[].sha256 image.control.model "
    "text.lora_adapter",
    "id": "webhook.generation_id validate.job_variants_id validate.job_id judge.job_variants_id judge.job_id judge.overlay_id "
    "overlay.job_variants_id overlay.proposal_id text.conversation_id",
    "tenant": "validate.tenant_id judge.tenant_id",
    "content": "image.prompt image.negative_prompt image.width image.height image.steps image.guidance_scale image.scheduler image.seed "
    "image.count image.lora.scale image.lora.alpha image.lora.required image.deterministic image.preview "
    "image.loras[].scale image.loras[].alpha image.loras[].required image.edit.strength image.control.scale image.true_cfg_scale "
    "image.output_format image.quality watermark.output_format watermark.quality "
    "image.signature.text image.signature.position image.signature.size image.signature.opacity image.signature.required "
    "watermark.signature.required webhook.lora_missing webhook.signature_missing webhook.signature_left_out "
    "watermark.signature.text watermark.signature.position watermark.signature.size watermark.signature.opacity watermark.artist "
    "watermark.metadata webhook.kind webhook.progress.current_step webhook.progress.total_steps webhook.progress.progress_percent "
    "webhook.progress.estimated_seconds webhook.progress.preview webhook.metadata webhook.prompt_tags[] webhook.fault.code "
    "webhook.fault.message webhook.fault.step webhook.fault.attempts webhook.fault.exception_type consult.prompt consult.image "
    "consult.max_new_tokens validate.ad_copy_text validate.prompt validate.once validate.default_verdict "
    "judge.default_verdict judge.ad_copy_text judge.text_region.x judge.text_region.y "
    "judge.text_region.width judge.text_region.height judge.text_color judge.large_text judge.protected_region.x judge.protected_region.y "
    "judge.protected_region.width judge.protected_region.height judge.once overlay.text overlay.font_recommendation.font_style "
    "overlay.font_recommendation.font_name overlay.font_recommendation.font_size_category overlay.font_recommendation.font_color_hex "
    "overlay.font_recommendation.reasoning overlay.x_align overlay.y_align overlay.text_color overlay.overlay_color overlay.margin "
    "overlay.protected_region.x overlay.protected_region.y overlay.protected_region.width overlay.protected_region.height text.message "
    "text.messages[].role text.messages[].content text.messages[].content[].text text.messages[].content[].picture.data text.system "
    "text.pictures[].data text.documents[].data text.documents[].name text.max_tokens text.temperature text.top_p text.presence_penalty "
    "text.frequency_penalty text.repetition_penalty text.stop[] text.seed text.json_only text.json_schema text.stream "
    "text.raw_prompt text.tools[].name text.tools[].description text.tools[].parameters text.tools[].strict text.tool_choice "
    "text.tool_name text.parallel_tool_calls text.n text.with_logprobs text.top_logprobs text.reasoning_effort "
    "text.messages[].tool_calls[].id text.messages[].tool_calls[].name text.messages[].tool_calls[].arguments text.messages[].tool_call_id "
    "text.messages[].name text.messages[].reasoning "
    "moderate.text moderate.texts[] moderate.prompt moderate.flagged[]",
}
"""What each argument refers to, by kind. A claim, an address, a name or an id is resolved within the tenant; content refers to nothing."""

SHOP, OFFICE = "shop", "office"
SHOP_COLOR, OFFICE_COLOR = (3, 141, 59), (200, 30, 120)
SHOP_TEXT = "the secret recipe of the shop"
GENERATION_ID = 8_400_001
LONG_SECONDS = 300.0


def arguments_of_all_steps() -> Iterator[tuple[str, str, type]]:
    for step, model in COMMANDS.items():
        for path, kind in argument_paths(model):
            yield str(step), path, kind


def test_every_argument_has_a_rule() -> None:
    """A new field must be placed in RULES, and so be tried below."""
    ruled = {name for names in RULES.values() for name in names.split()}
    assert ruled == {f"{step}.{path}" for step, path, _ in arguments_of_all_steps()}


@dataclass(frozen=True)
class Rig:
    """The running product, and what each tenant owns in it."""

    requests: RequestClient
    model: FakeOpenAiServer
    backend: WebhookBackend
    source: SourceDatabase
    store_folder: Path
    claims: dict[str, list[Claim]]
    texts: list[str]
    shop_ids: dict[str, str]
    conversation_id: str

    async def run(self, step: str, body: dict[str, Any], tenant: str) -> dict[str, Any] | str:
        """The result, or the code of the fault."""
        try:
            return await self.requests.request(step, body, seconds=LONG_SECONDS, tenant=tenant)
        except ReplyFault as error:
            return error.fault.code

    async def snapshot(self) -> dict[str, Any]:
        """Everything that the shop owns: its files, its rows, the backend's calls about its generation, its conversations."""
        return {
            "files": {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in self.shop_files()},
            "variant": [await self.source.variant_state(self.shop_ids), await self.source.vlm_traces(self.shop_ids)],
            "rows": await self.source.pool.fetchval(
                "select jsonb_build_array((select count(*) from public.overlay_layouts where job_variants_id = $1),"
                " (select count(*) from atelier.variant_work where job_variants_id = $1))",
                self.shop_ids["job_variants_id"],
            ),
            "calls": [request.body for request in self.backend.requests if request.body.get("generation_id") == GENERATION_ID],
            "conversations": await self.run("conversation.list", {}, SHOP),
        }

    def shop_files(self) -> list[Path]:
        return sorted(file for file in (self.store_folder / "tenants" / SHOP).rglob("*") if file.is_file())

    def leaks(self, body: dict[str, Any], result: dict[str, Any] | str) -> list[str]:
        """What of the shop, and not of the command itself, is in a result, in a picture of it, or reached the model since the last call."""
        requests, self.model.requests[:] = json.dumps(self.model.requests), []
        text = json.dumps(result) + requests if isinstance(result, dict) else requests
        marks = (SHOP_TEXT, *(claim.sha256 for claim in self.claims[SHOP]))
        found = [mark for mark in marks if mark in text and mark not in json.dumps(body)]
        return found + ["the shop's picture" for data in pictures_in(result, requests) if shows_color(data, SHOP_COLOR)]


def pictures_in(result: dict[str, Any] | str, requests: str) -> Iterator[bytes]:
    """The pictures of a result's claims, read from the folder behind the store, and those in requests to the model."""
    for claim in [part for part in walk(result) if isinstance(part, dict) and {"uri", "sha256"} <= part.keys()]:
        yield Path(claim["uri"].removeprefix("file://")).read_bytes()
    for part in walk(json.loads(requests)):
        if isinstance(part, str) and part.startswith("data:image/"):
            yield base64.b64decode(part.partition(",")[2])


def walk(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


def shows_color(data: bytes, color: tuple[int, int, int]) -> bool:
    with Pillow.open(io.BytesIO(data)) as picture:
        colors = picture.convert("RGB").getcolors(1 << 20) or []
    return any(seen == color for _, seen in colors)


def solid_png(color: tuple[int, int, int], side: int = 64) -> bytes:
    with io.BytesIO() as file:
        Pillow.new("RGB", (side, side), color).save(file, "PNG")
        return file.getvalue()


@pytest.fixture
async def rig(
    bus_settings: BusSettings, store_folder: Path, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purged_queues: None
) -> AsyncIterator[Rig]:
    """All actors of the steps, and a gateway whose reply queue the commands use."""
    await asyncio.to_thread(write_tiny_diffusion, tmp_path / "sd")
    (tmp_path / "words.txt").write_text("[hate]\nrecipe\n")
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(open_fake_openai_server())
        backend = await stack.enter_async_context(open_webhook_backend())
        environment = {
            "VLM_ENGINE": "openai",
            "VLM_BASE_URL": model.url,
            "VLM_MODEL": "second",
            "VLLM_SERVER_URL": f"{model.url}/v1",
            "ASSETS_DIR": str(tmp_path / "assets"),
            "BACKEND_API_URL": backend.url,
            "IMAGE_MODEL": str(tmp_path / "sd"),
            "IMAGE_DEVICE": "cpu",
            "IMAGE_THREADS": "1",
            "MODERATION_NUDENET": "on",
            "MODERATION_WORDS": str(tmp_path / "words.txt"),
            "IMAGE_LOCAL_CACHE": str(tmp_path / "cache"),
            "OCR_MAX_SIDE": "64",  # pictures of one colour show no text in any size
            "OCR_THREADS": "1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = StoreSettings(store_url=store_folder.as_uri())
        singles = (image.build_actor(), watermark.ACTOR, upload.ACTOR, webhook.ACTOR, validate.ACTOR, judge.ACTOR, overlay.ACTOR)
        actors = (*singles, moderate.ACTOR, *consult.ACTORS, *text.ACTORS, *conversations.ACTORS)
        await stack.enter_async_context(Worker(actors, (), bus_settings, store).run())
        client = await stack.enter_async_context(open_gateway_client(bus_settings, store, GATEWAY_HEALTH_NEEDS_CONSULT="false"))
        source = await stack.enter_async_context(open_source_database(database_url, tmp_path / "assets"))
        yield await furnish(client.requests, model, backend, source, store, store_folder, tmp_path)


async def furnish(
    requests: RequestClient,
    model: FakeOpenAiServer,
    backend: WebhookBackend,
    source: SourceDatabase,
    store: StoreSettings,
    folder: Path,
    tmp_path: Path,
) -> Rig:
    """What the tenants own before: pictures, a published file, a LoRA, a conversation, a generation, a variant with a layout."""
    await asyncio.to_thread(write_tiny_lora, tmp_path / "shop.safetensors", tmp_path / "sd", seed=1)
    async with open_claim_store(store) as claims:
        size = {"width": 64, "height": 64}
        owned = {
            tenant: [
                await claims.write(solid_png(color), tenant=tenant, media_type="image/png", generated=generated, **size)
                for generated in (False, True)
            ]
            for tenant, color in ((SHOP, SHOP_COLOR), (OFFICE, OFFICE_COLOR))
        }
        lora = await claims.write((tmp_path / "shop.safetensors").read_bytes(), tenant=SHOP, media_type="application/octet-stream")
        notes = await claims.write(SHOP_TEXT.encode(), tenant=SHOP, media_type="text/plain")
    owned[SHOP] += [lora, notes]
    job = await source.insert_job(tenant=SHOP)
    ids = await source.insert_variant(step="overlay", job=job) | {"tenant_id": SHOP}
    render = source.write_asset(solid_png(SHOP_COLOR, 320))
    ids["overlay_id"] = await source.insert_overlay(ids, {"render": {"url": render}})
    ids["render_asset_url"] = render
    rig = Rig(requests, model, backend, source, folder, owned, [], ids, "")
    published = await rig.run("upload", {"images": [owned[SHOP][1].model_dump(mode="json")], "name": "job-shop"}, SHOP)
    talk = await rig.run("text", {"message": SHOP_TEXT}, SHOP)
    called = await rig.run(
        "webhook", {"kind": "complete", "generation_id": GENERATION_ID, "result_url": "https://shop.example/1.png"}, SHOP
    )
    assert isinstance(published, dict), published
    assert isinstance(talk, dict), talk
    assert isinstance(called, dict), called
    uris = [published["files"][0]["uri"], *(claim.uri for claim in owned[SHOP])]
    rig.texts.extend(
        [*uris, *ids.values(), talk["conversation_id"], lora.sha256, "job-shop", f"tenants/{SHOP}/job-shop", f"../{SHOP}/job-shop"]
    )
    model.requests.clear()
    return replace(rig, conversation_id=talk["conversation_id"])


def shop_values(rig: Rig, kind: type) -> list[Any]:
    """What the office may try in an argument of this type."""
    if kind is Claim:
        return [claim.model_dump(mode="json") for claim in rig.claims[SHOP]]
    return {str: [*rig.texts, str(GENERATION_ID)], int: [GENERATION_ID], dict: [{text: text for text in rig.texts}]}.get(kind, [])


async def bases(rig: Rig, step: str, path: str) -> list[dict[str, Any]]:
    """Complete commands of the office, in which one argument is then replaced; for variants also all ids of the shop's together."""
    own = rig.claims[OFFICE][0].model_dump(mode="json")
    match step:
        case "image":
            nested = {
                "edit": {"image": own},
                "control": {"image": own, "model": "canny"},
                "lora.sha256": {"uri": "https://office.example/style.safetensors"},
                "loras[].sha256": [{"uri": "https://office.example/style.safetensors"}],
            }
            source = {path.partition(".")[0].removesuffix("[]"): value for start, value in nested.items() if path.startswith(start)}
            return [{"prompt": "a lighthouse", "steps": 2, "width": 64, "height": 64, "seed": 1} | source]
        case "watermark" | "upload":
            return [{"images": [own], "name": "mine"}]
        case "overlay":
            return [{"images": [own], "text": "open today"}]
        case "webhook":
            return [{"kind": "complete", "generation_id": GENERATION_ID + 1}, {"kind": "failed", "generation_id": GENERATION_ID}]
        case "consult":
            return [{"prompt": "what is this?"}]
        case "moderate":
            return [{"prompt": "what is this?"}]
        case "text":
            by_assistant = path.startswith(("messages[].tool_calls", "messages[].reasoning"))
            chat = {"messages": [{"role": "assistant" if by_assistant else "user", "content": "hello"}]}
            return [{} if path == "raw_prompt" else chat if path.startswith(("messages", "tool", "n")) else {"message": "hello"}]
        case _:
            job = await rig.source.insert_job(tenant=OFFICE)
            variant = await rig.source.insert_variant(step="overlay" if step == "judge" else "img_gen", job=job) | {"tenant_id": OFFICE}
            return [{"image": own}, variant, rig.shop_ids, rig.shop_ids | {"tenant_id": OFFICE}]


async def test_office_reads_and_changes_nothing_of_the_shop(rig: Rig) -> None:
    before, failures, tried = await rig.snapshot(), [], 0
    for step, path, kind in arguments_of_all_steps():
        for value in shop_values(rig, kind):
            for base in await bases(rig, step, path):
                body = command_with(COMMANDS[step], path, value, base)
                tried += 1
                if leaks := rig.leaks(body, await rig.run(step, body, OFFICE)):
                    failures.append(f"{step}.{path} = {str(value)[:120]!r}: {leaks}")
        if (after := await rig.snapshot()) != before:
            failures.append(f"{step}.{path} changed {[name for name in before if after[name] != before[name]]}")
            before = after
    assert failures == [], "\n".join(failures)
    assert tried > 1000


async def write_left_half_mask(rig: Rig, tenant: str) -> dict[str, Any]:
    """The claim on a mask whose right half keeps the picture."""
    mask = Pillow.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    with io.BytesIO() as file:
        mask.save(file, "PNG")
        async with open_claim_store(StoreSettings(store_url=rig.store_folder.as_uri())) as claims:
            return (await claims.write(file.getvalue(), tenant=tenant, media_type="image/png")).model_dump(mode="json")


async def test_shop_reads_and_changes_its_own(rig: Rig) -> None:
    """The proof that the observations of the test above can fail."""
    mask, picture = await write_left_half_mask(rig, SHOP), rig.claims[SHOP][0].model_dump(mode="json")
    before = await rig.snapshot()
    attacks = [
        ("consult", {"prompt": "?", "picture": picture}, "the shop's picture"),
        ("watermark", {"images": [picture]}, "the shop's picture"),
        ("image", {"prompt": "a lighthouse", "steps": 2, "edit": {"image": picture, "mask": mask}}, "the shop's picture"),
        ("text", {"message": "again?", "conversation_id": rig.conversation_id}, SHOP_TEXT),
    ]
    for step, body, leak in attacks:
        assert leak in rig.leaks(body, await rig.run(step, body, SHOP)), step
    await rig.run("upload", {"images": [picture], "name": "job-shop"}, SHOP)
    await rig.run("judge", rig.shop_ids, SHOP)
    after = await rig.snapshot()
    assert [name for name in before if before[name] != after[name]] == ["files", "variant", "rows", "conversations"]
