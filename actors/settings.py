"""The settings of the CPU actors. One small class each; an engine's settings stand beside the engine."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bus.net.ssrf import AddressSettings, StringList, split_commas

Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(split_commas)]


class WatermarkSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="WATERMARK_")

    fonts: Paths = Field((), description="Further fonts (TrueType, OpenType), looked at after those that ship.")
    max_pixels: int = Field(25_000_000, ge=1, description="A picture with more is refused before it is decoded.")
    max_bytes: int = Field(64 << 20, ge=1, description="A larger picture is refused unread.")
    signature_max_bytes: int = Field(10 << 20, ge=1, description="A larger signature picture is refused.")
    signature_required: bool = Field(True, description="False: a signature picture that is not there is left out, as in the source system.")
    threads: int = Field(2, ge=1, description="How many pictures are worked on at once.")


class DeadLetterSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="DEAD_LETTERS_")

    foreign_queues: StringList = Field((), description="Further queues of dead letters, declared by their owners, comma between.")


class OverlaySettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="OVERLAY_")

    fonts: Paths = Field((), description="Further fonts (TrueType, OpenType), looked at after those that ship.")
    max_pixels: int = Field(25_000_000, ge=1, description="A picture with more is refused before it is decoded.")
    threads: int = Field(2, ge=1, description="How many pictures are worked on at once.")


class UploadSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="UPLOAD_")

    url: str | None = Field(None, description="`file:///folder` or `s3://bucket/prefix` to upload to; default: the store itself.")
    public_url: str | None = Field(None, description="How the outside world reads that place; default STORE_PUBLIC_URL, else presigned.")
    key: str = Field("generations/{name}.{extension}", description="The key of an order's only picture.")
    key_of_several: str = Field("generations/{name}/{index}.{extension}", description="The key of each of several; `{index}` from 0.")

    @field_validator("key", "key_of_several")
    @classmethod
    def check_placeholders(cls, template: str) -> str:
        """Two orders must never share a key."""
        try:
            filled = template.format(name="<name>", index="<index>", extension="png")
        except (LookupError, AttributeError) as error:
            raise ValueError(f"the key {template!r} may contain {{name}}, {{index}} and {{extension}} only") from error
        if "<name>" not in filled:
            raise ValueError(f"the key {template!r} must contain {{name}}")
        return template

    @field_validator("key_of_several")
    @classmethod
    def check_index(cls, template: str) -> str:
        if "{index}" not in template:
            raise ValueError(f"the key {template!r} must contain {{index}}")
        return template


class CredentialSettings(BaseSettings):
    """Content Credentials (C2PA) are signed when both files are named."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="CREDENTIALS_")

    chain: Path | None = Field(None, description="PEM: the signer's certificate first, then those above it.")
    key: Path | None = Field(None, description="PEM, PKCS#8: the private key of the first certificate.")
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = Field("es256", description="As the key is.")
    timestamp_url: str | None = Field(None, description="An RFC 3161 time stamp authority; it is asked at each signature.")


class WebhookSettings(AddressSettings):
    """How the backend is told. Durations are seconds."""

    backend_api_url: str | None = Field(
        None, validation_alias=AliasChoices("BACKEND_API_URL", "BACKEND_URL"), description="Whose webhooks are called."
    )
    internal_api_token: SecretStr | None = Field(None, description="Sent as `Authorization: Bearer …`.")
    webhook_allowed_hosts: StringList = Field((), description="Hosts that a message may name as its backend, `host` or `host:port`.")
    webhook_secret: SecretStr | None = Field(None, description="`whsec_<base64>`; several, separated by spaces, while a key is changed.")
    webhook_timeout_seconds: float = Field(10.0, gt=0, description="One call, from the name to the end of the answer.")
    webhook_memory_days: int = Field(90, ge=1, description="How long is known what a backend was told of a generation.")
    webhook_source: str = Field("inference-server", description="Sent as `X-Request-Source`.")


class AttachmentSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True)

    max_upload_bytes: int = Field(10 << 20, ge=1, validation_alias="MAX_UPLOAD_BYTES", description="A larger file is refused unread.")
    max_image_side: int = Field(1280, ge=32, validation_alias="MAX_IMAGE_SIDE", description="Pixels. A longer picture is scaled down.")
    max_pixels: int = Field(50_000_000, ge=1, validation_alias="MAX_IMAGE_PIXELS", description="A picture with more is never decoded.")
    max_letters: int = Field(400_000, ge=1, validation_alias="DOCUMENT_MAX_LETTERS", description="A document with more is refused.")
    max_pages: int = Field(2000, ge=1, validation_alias="DOCUMENT_MAX_PAGES", description="A document with more is refused.")
    read_seconds: float = Field(30.0, gt=0, validation_alias="DOCUMENT_SECONDS", description="Reading one document may take so long.")
    memory_bytes: int = Field(1 << 30, ge=1 << 28, validation_alias="DOCUMENT_MEMORY_BYTES", description="Of the process that reads it.")
