"""The doctor's check of the links to uploaded pictures: a backend keeps them, so they should not expire."""

from actors.settings import UploadSettings
from actors.upload import destination_settings
from bus.storage.public_address import EXPIRY_CURE, describe_expiry
from bus.storage.settings import StoreSettings
from ops.commands.doctor_host import Check
from ops.settings import LocalSettings


async def check_links(settings: LocalSettings) -> Check:
    """A warning: such links work until they expire."""
    upload = UploadSettings()
    url = upload.url or settings.given_store_url
    if url is None:
        return Check("links", True, "to files of the local store")
    reason = describe_expiry(destination_settings(upload, url) if upload.url else StoreSettings(store_url=url))
    return Check("links", True, reason, EXPIRY_CURE, warning=True) if reason else Check("links", True, "to uploaded pictures stay valid")
