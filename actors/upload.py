"""Upload: puts pictures into the public store.

Reads `images` and `name`; puts each under a key that is derived from the name, in the tenant's folder: a repeated upload is one object,
and a later one with the same name replaces it, as a new order for the same generation does. Returns their addresses. With a configured
certificate a picture that a model generated gets its Content Credentials first, because they must be the last change; any other picture
is uploaded byte for byte, with the credentials that it came with.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
from anyio import to_thread

from actors.imaging.content_credentials import CredentialSigner, load_credential_signer
from actors.settings import CredentialSettings, UploadSettings
from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.public_address import EXPIRY_CURE
from bus.storage.settings import StoreSettings
from contracts.claim import Claim
from contracts.upload import Upload, UploadDone
from contracts.wire import Step

PUBLIC_EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
"""Media types that may be public, and the extension of each. Any other could be a web page that runs scripts on the store's domain."""


log = structlog.get_logger()


@asynccontextmanager
async def open_upload(resources: Resources) -> AsyncIterator[Handler]:
    settings = UploadSettings()
    sign_credentials = await to_thread.run_sync(load_credential_signer, CredentialSettings())
    async with AsyncExitStack() as stack:
        destination = resources.claims
        if settings.url is not None:
            destination = await stack.enter_async_context(open_claim_store(destination_settings(settings, settings.url)))
        if reason := destination.link_expiry:
            log.warning("upload.links_expire", reason=reason, remedy=EXPIRY_CURE)
        yield partial(upload, claims=resources.claims, destination=destination, settings=settings, sign_credentials=sign_credentials)


def destination_settings(settings: UploadSettings, url: str) -> StoreSettings:
    """The settings of the store at `url`, UPLOAD_URL."""
    store = StoreSettings(store_url=url)
    return store.model_copy(update={"store_public_url": settings.public_url or store.store_public_url})


ACTOR = Actor(step=Step.UPLOAD, command=Upload, result=UploadDone, open=open_upload, timeout_seconds=120, prefetch=4)


async def upload(
    command: Upload,
    context: Context,
    *,
    claims: ClaimStore,
    destination: ClaimStore,
    settings: UploadSettings,
    sign_credentials: CredentialSigner | None = None,
) -> UploadDone:
    keys = build_object_keys(command.images, command.name, settings)
    files = []
    for image, key in zip(command.images, keys, strict=True):
        data = await claims.read(image, tenant=context.tenant)
        if sign_credentials and await claims.is_generated(image, tenant=context.tenant):
            data = await to_thread.run_sync(sign_credentials, data, image.media_type, key.rpartition("/")[2])
        file = await destination.put(key, data, tenant=context.tenant, media_type=image.media_type)
        files.append(file.model_copy(update={"width": image.width, "height": image.height}))
    urls = [await destination.url(file, tenant=context.tenant, permanent=True) for file in files]
    return UploadDone(files=files, result_url=urls[0], result_urls=urls)


def build_object_keys(images: Sequence[Claim], name: str, settings: UploadSettings) -> list[str]:
    """One key for each picture. Raises PermanentError("media-refused") for another media type."""
    template = settings.key if len(images) == 1 else settings.key_of_several
    return [template.format(name=name, index=index, extension=file_extension(image)) for index, image in enumerate(images)]


def file_extension(image: Claim) -> str:
    if image.media_type not in PUBLIC_EXTENSIONS:
        raise PermanentError("media-refused", f"{image.uri} is {image.media_type!r}; only {', '.join(PUBLIC_EXTENSIONS)} are uploaded.")
    return PUBLIC_EXTENSIONS[image.media_type]
