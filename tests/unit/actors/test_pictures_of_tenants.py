"""Pictures of two tenants in one store: a step reads those of its own tenant alone, replaces no other's, and keeps a picture's origin."""

import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from anyio import CapacityLimiter
from PIL import Image

from actors.attachments.documents import DocumentReader
from actors.consult import load_images
from actors.engines.diffusion.input_pictures import PictureReader
from actors.engines.settings import ImageSettings
from actors.llm.prompt_builder import PromptBuilder
from actors.overlay import overlay
from actors.settings import AttachmentSettings, OverlaySettings, UploadSettings, WatermarkSettings
from actors.upload import upload
from actors.vision.image_loader import ImageLoader
from actors.vision.settings import VisionSettings
from actors.watermark import watermark
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from contracts.claim import Claim
from contracts.consult import Consult
from contracts.image import Edit
from contracts.overlay import Overlay
from contracts.text import Text
from contracts.upload import Upload
from contracts.watermark import Watermark
from tests.support.actor_context import make_context

Step = Callable[[ClaimStore, Claim, str | None], Awaitable[Any]]


async def run_upload(claims: ClaimStore, image: Claim, tenant: str | None, name: str = "gen-7") -> Any:
    command = Upload(images=[image], name=name)
    return await upload(command, make_context(tenant=tenant), claims=claims, destination=claims, settings=UploadSettings())


async def run_watermark(claims: ClaimStore, image: Claim, tenant: str | None, **signature: Any) -> Any:
    command = Watermark.model_validate({"images": [image.model_dump()], "signature": signature})
    return await watermark(command, make_context(tenant=tenant), claims=claims, settings=WatermarkSettings(), threads=CapacityLimiter(1))


async def run_overlay(claims: ClaimStore, image: Claim, tenant: str | None) -> Any:
    command, threads = Overlay(images=[image], text="SALE"), CapacityLimiter(1)
    return await overlay(command, make_context(tenant=tenant), claims=claims, database=None, settings=OverlaySettings(), threads=threads)


async def run_consult(claims: ClaimStore, image: Claim, tenant: str | None) -> Any:
    return await load_images(Consult(prompt="What is it?", picture=image), tenant, ImageLoader(claims, VisionSettings()))


async def run_text(claims: ClaimStore, image: Claim, tenant: str | None) -> Any:
    settings = AttachmentSettings()
    command = Text.model_validate({"message": "What is it?", "pictures": [{"claim": image.model_dump()}]})
    return await PromptBuilder(claims, DocumentReader(settings), settings).build(command, tenant)


async def run_image(claims: ClaimStore, image: Claim, tenant: str | None) -> Any:
    return await PictureReader(claims, ImageSettings()).read_edit(Edit(image=image), tenant)


STEPS: list[Step] = [run_upload, run_watermark, run_overlay, run_consult, run_text, run_image]


def png(color: str = "red") -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (64, 64), color).save(file, "PNG")
        return file.getvalue()


@pytest.mark.parametrize("step", STEPS)
async def test_claim_of_another_tenant_is_refused(claims: ClaimStore, step: Step) -> None:
    for owner in ("shop", "office2", None):
        foreign = await claims.put("generations/gen-1.png", png(), tenant=owner, media_type="image/png")
        with pytest.raises(PermanentError) as error:
            await step(claims, foreign, "office")
        assert error.value.code == "claim-refused"
        await step(claims, foreign, owner)


@pytest.mark.parametrize("step", STEPS)
async def test_claim_of_a_job_from_before_the_upgrade_is_read(claims: ClaimStore, step: Step) -> None:
    assert await step(claims, await claims.write(png(), tenant=None, media_type="image/png"), "office")


async def test_upload_replaces_pictures_of_its_own_tenant_alone(claims: ClaimStore, tmp_path: Path) -> None:
    """A guessed name is a file in one's own folder; the second upload of one tenant with one name replaces the first."""
    uploads = {}
    for tenant, color in (("shop", "red"), (None, "green"), ("office", "blue"), ("office", "white")):
        uploads[tenant] = await run_upload(claims, await claims.write(png(color), tenant=tenant, media_type="image/png"), tenant)
    assert len({done.result_url for done in uploads.values()}) == 3
    assert {tenant: await claims.read(done.files[0], tenant=tenant) for tenant, done in uploads.items()} == {
        "shop": png("red"),
        None: png("green"),
        "office": png("white"),
    }
    assert (tmp_path / "generations" / "gen-7.png").read_bytes() == png("green"), "the installation's keys are those of before"
    assert (tmp_path / "tenants" / "office" / "generations" / "gen-7.png").read_bytes() == png("white")


async def test_signature_that_names_a_file_of_the_store_is_refused(tmp_path: Path) -> None:
    settings = StoreSettings(store_url=(tmp_path / "store").as_uri(), asset_roots=(tmp_path,))
    (tmp_path / "signature.png").write_bytes(png("green"))
    async with open_claim_store(settings) as claims:
        image = await claims.write(png(), tenant="office", media_type="image/png")
        for owner in ("shop", "office", None):
            secret = await claims.put("generations/gen-1.png", png("blue"), tenant=owner, media_type="image/png")
            with pytest.raises(PermanentError) as error:
                await run_watermark(claims, image, "office", image_uri=secret.uri)
            assert error.value.code == "asset-refused"
        await run_watermark(claims, image, "office", image_uri=(tmp_path / "signature.png").as_uri())


@pytest.mark.parametrize("step", [run_watermark, run_overlay])
@pytest.mark.parametrize("tenant", ["shop", None])
async def test_changed_picture_keeps_its_origin(claims: ClaimStore, step: Step, tenant: str | None) -> None:
    for generated in (True, False):
        image = await claims.write(png(), tenant=tenant, media_type="image/png", generated=generated)
        done = await step(claims, image, tenant)
        assert await claims.is_generated(done.images[0], tenant=tenant) == generated


@pytest.mark.parametrize("tenant", ["shop", None])
async def test_only_generated_pictures_are_signed_at_upload(claims: ClaimStore, tenant: str | None) -> None:
    """Also when a user sends the bytes of a generated one."""
    for generated, expected in ((False, png()), (True, b"signed " + png())):
        image = await claims.write(png(), tenant=tenant, media_type="image/png", generated=generated)
        done = await upload(
            Upload(images=[image], name="gen-7"),
            make_context(tenant=tenant),
            claims=claims,
            destination=claims,
            settings=UploadSettings(),
            sign_credentials=lambda data, _media_type, _title: b"signed " + data,
        )
        assert await claims.read(done.files[0], tenant=tenant) == expected
