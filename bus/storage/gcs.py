"""Google Cloud Storage: its settings, its credentials, and the address of an object in its JSON API."""

import asyncio
import time
from urllib.parse import quote

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.errors import TemporaryError
from bus.masking import remember_token
from bus.secrets import HeaderSecret, ServerUrl

TOKEN_RESERVE_SECONDS = 60.0
"""A token that expires within this time is not used for another request."""
NO_TOKEN_SECONDS = 300.0
"""How long a machine without a token is not asked for one again."""


class GcsSettings(BaseSettings):
    """Access to Google Cloud Storage. On Google's machines the token comes from the metadata server."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    gcs_api_url: ServerUrl = Field("https://storage.googleapis.com", description="Google Cloud Storage, or a server with the same API.")
    gcs_token: HeaderSecret | None = Field(None, description="An OAuth access token; without one a public bucket can be read.")
    gcs_metadata_url: ServerUrl = Field(
        "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token",
        description="The metadata server from which a machine of Google's gets its token.",
    )

    def object_url(self, bucket: str, key: str) -> str:
        """The address of an object; with `alt=media` it is that of its bytes."""
        return f"{self.gcs_api_url.rstrip('/')}/storage/v1/b/{quote(bucket, safe='')}/o/{quote(key, safe='')}"


class GcsCredentials:
    """The access token: GCS_TOKEN, else that of the metadata server, which is asked again before it expires."""

    def __init__(self, settings: GcsSettings) -> None:
        self._settings = settings
        self._headers: dict[str, str] = {}
        self._valid_until = 0.0
        self._lock = asyncio.Lock()

    async def headers(self) -> dict[str, str]:
        """The authorization header; empty without a token, which is enough for public buckets. Raises TemporaryError."""
        if self._settings.gcs_token:
            return {"Authorization": f"Bearer {self._settings.gcs_token.get_secret_value()}"}
        async with self._lock:
            if time.monotonic() >= self._valid_until:
                self._headers, seconds = await self._ask_metadata_server()
                self._valid_until = time.monotonic() + seconds
        return self._headers

    async def _ask_metadata_server(self) -> tuple[dict[str, str], float]:
        """The header and how many seconds it may be used."""
        import httpx

        try:
            async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
                response = await http.get(self._settings.gcs_metadata_url, headers={"Metadata-Flavor": "Google"})
            token = response.raise_for_status().json()
            access_token = str(token["access_token"]).strip()
            remember_token(access_token)
            return {"Authorization": f"Bearer {access_token}"}, float(token.get("expires_in", 0)) - TOKEN_RESERVE_SECONDS
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError):
            if self._headers:
                raise TemporaryError("Google's metadata server no longer answers with a token", code="token-unavailable") from None
            return {}, NO_TOKEN_SECONDS
