"""Upload: pictures to the place where the outside world reads them.

Reads `images` and `name`; puts each under a key made from the name, so that an upload done twice is one object; returns their addresses.
With a certificate each gets its Content Credentials first: nothing changes a picture after that.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from anyio import to_thread

from actors.pictures.credentials import Certify, open_credentials
from actors.settings import CredentialSettings, UploadSettings
from bus.actor import Actor, Context, Handler, Tools
from bus.claims import ClaimStore
from bus.errors import PermanentError
from bus.store_settings import StoreSettings
from bus.stores import open_claims
from contracts.claim import Claim
from contracts.upload import Upload, UploadDone
from contracts.wire import Step

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
"""What may lie in public. Anything else could be a page that acts in the name of the place's owner."""


@asynccontextmanager
async def open_upload(tools: Tools) -> AsyncIterator[Handler]:
    settings = UploadSettings()
    certify = await to_thread.run_sync(open_credentials, CredentialSettings())
    if settings.url is None:
        yield partial(upload, claims=tools.claims, goal=tools.claims, settings=settings, certify=certify)
        return
    place = StoreSettings(store_url=settings.url)
    async with open_claims(place.model_copy(update={"store_public_url": settings.public_url or place.store_public_url})) as goal:
        yield partial(upload, claims=tools.claims, goal=goal, settings=settings, certify=certify)


ACTOR = Actor(step=Step.UPLOAD, command=Upload, result=UploadDone, open=open_upload, timeout_seconds=120, prefetch=4)


async def upload(
    command: Upload, context: Context, *, claims: ClaimStore, goal: ClaimStore, settings: UploadSettings, certify: Certify | None = None
) -> UploadDone:
    keys = keys_for(command.images, command.name, settings)
    files = []
    for image, key in zip(command.images, keys, strict=True):
        data = await claims.read(image)
        if certify:
            data = await to_thread.run_sync(certify, data, image.media_type, key.rpartition("/")[2])
        put = await goal.put(key, data, media_type=image.media_type)
        files.append(put.model_copy(update={"width": image.width, "height": image.height}))
    urls = [await goal.url(file) for file in files]
    return UploadDone(files=files, result_url=urls[0], result_urls=urls)


def keys_for(images: Sequence[Claim], name: str, settings: UploadSettings) -> list[str]:
    """One key a picture. Raises PermanentError("media-refused") for what is no picture."""
    template = settings.key if len(images) == 1 else settings.key_of_several
    return [template.format(name=name, index=index, extension=extension_of(image)) for index, image in enumerate(images)]


def extension_of(image: Claim) -> str:
    if image.media_type not in EXTENSIONS:
        raise PermanentError("media-refused", f"{image.uri} is {image.media_type!r}; uploaded are {', '.join(EXTENSIONS)}.")
    return EXTENSIONS[image.media_type]
