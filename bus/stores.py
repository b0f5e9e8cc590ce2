"""Which claim store: chosen by the scheme of STORE_URL."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bus.assets import Assets
from bus.claims import ClaimStore
from bus.claims_folder import FolderStore
from bus.claims_s3 import S3Store
from bus.s3 import open_s3
from bus.store_settings import StoreSettings


@asynccontextmanager
async def open_claims(settings: StoreSettings) -> AsyncIterator[ClaimStore]:
    """The claim store that STORE_URL names. Nothing is connected before the first call; aioboto3 is imported only where S3 is used."""
    async with AsyncExitStack() as stack:
        place = urlsplit(settings.store_url)
        if place.scheme == "s3":
            client = await stack.enter_async_context(open_s3(settings))
            assets = Assets(settings, stack, buckets=(place.netloc,), client=client)
            yield S3Store(client, place.netloc, place.path.strip("/"), settings, assets)
        else:
            root = Path(unquote(place.path))
            yield FolderStore(root, Assets(settings, stack, roots=(root,)), settings.store_public_url)
