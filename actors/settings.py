"""The settings of the actors without an engine, one class for each. Engine settings are in `actors/engines/settings.py`."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from actors.webhooks.signature import check_secrets
from bus.net.settings import AddressSettings
from bus.secrets import HeaderSecret, HeaderWord, SecretWords, ServerUrl
from bus.settings import PathList, StringList

MIN_TOKEN_CHARS = 32


class WatermarkSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="WATERMARK_")

    fonts: PathList = Field((), description="Further fonts (TrueType, OpenType), used after the bundled ones.")
    max_pixels: int = Field(25_000_000, ge=1, description="A picture with more is rejected before it is decoded.")
    max_bytes: int = Field(64 << 20, ge=1, description="A larger picture is rejected before it is read.")
    signature_max_bytes: int = Field(10 << 20, ge=1, description="A larger signature picture is rejected.")
    threads: int = Field(2, ge=1, description="Pictures processed at once.")


class OrderSettings(BaseSettings):
    """How orders from the queue `image_generation` are read."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="ORDER_")

    assets_required: bool = Field(
        False,
        description="True: an order whose LoRA or signature picture is missing fails before anything is drawn. "
        "False: the base model draws it, or it stays unsigned, and the `complete` webhook says so.",
    )


class DeadLetterSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="DEAD_LETTERS_")

    foreign_queues: StringList = Field((), description="Further queues of dead letters, declared by their owners; comma-separated.")


class LedgerSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="LEDGER_")

    retention_days: float = Field(
        90.0, ge=0, le=36500, description="How long a job is kept after its end, with its events and claims. 0: for ever."
    )


class ResponseSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="RESPONSES_")

    retention_days: float = Field(
        30.0, ge=0, le=36500, description="How long a stored response is kept after its end, with its items and events. 0: for ever."
    )


class ListenerSettings(BaseSettings):
    """Names as in the source system. Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="JOB_STATE_LISTENER_")

    reconnect_delay: float = Field(5.0, gt=0, description="Pause before a lost connection is opened again.")
    sweep_seconds: float = Field(60.0, gt=0, description="Interval of the queries for all waiting variants.")


class OverlaySettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="OVERLAY_")

    fonts: PathList = Field((), description="Further fonts (TrueType, OpenType), used after the bundled ones.")
    max_pixels: int = Field(25_000_000, ge=1, description="A picture with more is rejected before it is decoded.")
    threads: int = Field(2, ge=1, description="Pictures processed at once.")


class UploadSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="UPLOAD_")

    url: str | None = Field(None, description="`file:///folder` or `s3://bucket/prefix` to upload to; default: the claim store.")
    public_url: str | None = Field(None, description="Public base address of UPLOAD_URL; default STORE_PUBLIC_URL, else presigned.")
    key: str = Field("generations/{name}.{extension}", description="Key of an order's only picture.")
    key_of_several: str = Field("generations/{name}/{index}.{extension}", description="Key of each of several pictures; `{index}` from 0.")

    @field_validator("key", "key_of_several")
    @classmethod
    def check_placeholders(cls, template: str) -> str:
        """Without `{name}` two orders would share a key."""
        try:
            key = template.format(name="<name>", index="<index>", extension="png")
        except (LookupError, AttributeError) as error:
            raise ValueError(f"the key {template!r} may contain {{name}}, {{index}} and {{extension}} only") from error
        if "<name>" not in key:
            raise ValueError(f"the key {template!r} must contain {{name}}")
        return template

    @field_validator("key_of_several")
    @classmethod
    def check_index(cls, template: str) -> str:
        if "{index}" not in template:
            raise ValueError(f"the key {template!r} must contain {{index}}")
        return template


class CredentialSettings(BaseSettings):
    """Content Credentials (C2PA) are signed when both files are configured."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="CREDENTIALS_")

    chain: Path | None = Field(None, description="PEM: the signer's certificate first, then its issuers.")
    key: Path | None = Field(None, description="PEM, PKCS#8: the private key of the first certificate.")
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = Field("es256", description="Matches the key.")
    timestamp_url: ServerUrl | None = Field(None, description="An RFC 3161 time stamp authority, called at each signature.")


class WebhookSettings(AddressSettings):
    """How the backend is called. Durations are seconds."""

    backend_api_url: ServerUrl | None = Field(
        None, validation_alias=AliasChoices("BACKEND_API_URL", "BACKEND_URL"), description="Base address of the backend's webhooks."
    )
    internal_api_token: HeaderSecret | None = Field(None, description="Sent as `Authorization: Bearer …`; at least 32 characters.")
    webhook_allowed_hosts: StringList = Field((), description="Hosts that a message may name as its backend, `host` or `host:port`.")
    webhook_secret: SecretWords | None = Field(
        None,
        description="`whsec_` and base64 of 24 to 64 bytes, padded or not; several, separated by spaces, during a key rotation.",
    )
    webhook_timeout_seconds: float = Field(10.0, gt=0, description="Time limit of one call, from name resolution to the response's end.")
    webhook_memory_days: int = Field(90, ge=1, description="How long the state of a generation's calls is kept.")
    webhook_source: HeaderWord = Field("inference-server", description="Sent as `X-Request-Source`.")

    @field_validator("internal_api_token")
    @classmethod
    def check_token_length(cls, token: SecretStr | None) -> SecretStr | None:
        """The backend refuses a shorter one. The error names the length, not the token."""
        if token is not None and len(token.get_secret_value()) < MIN_TOKEN_CHARS:
            length = len(token.get_secret_value())
            cure = "make one with `openssl rand -hex 32`, and set it at the backend too"
            raise ValueError(f"it has {length} characters, at least {MIN_TOKEN_CHARS} are needed: {cure}")
        return token

    @field_validator("webhook_secret")
    @classmethod
    def check_webhook_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        """One that cannot sign is refused at the start, not at each call."""
        if secret is not None:
            check_secrets(secret.get_secret_value())
        return secret


class AttachmentSettings(BaseSettings):
    """Limits of pictures and documents that are sent to the text step."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True)

    max_upload_bytes: int = Field(10 << 20, ge=1, validation_alias="MAX_UPLOAD_BYTES", description="A larger file is rejected unread.")
    max_image_side: int = Field(1280, ge=32, validation_alias="MAX_IMAGE_SIDE", description="Pixels. A longer picture is scaled down.")
    max_pixels: int = Field(50_000_000, ge=1, validation_alias="MAX_IMAGE_PIXELS", description="A picture with more is never decoded.")
    max_chars: int = Field(
        400_000, ge=1, validation_alias="DOCUMENT_MAX_LETTERS", description="Characters of a document; more are rejected."
    )
    max_pages: int = Field(2000, ge=1, validation_alias="DOCUMENT_MAX_PAGES", description="A document with more is rejected.")
    read_seconds: float = Field(30.0, gt=0, validation_alias="DOCUMENT_SECONDS", description="Time limit for reading one document.")
    memory_bytes: int = Field(
        1 << 30, ge=1 << 28, validation_alias="DOCUMENT_MEMORY_BYTES", description="Memory limit of the reader process."
    )
