"""Limits of what users hand in. The first two bear the source system's names. Durations are seconds, sizes are bytes."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class AttachmentSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True)

    max_upload_bytes: int = Field(10 << 20, ge=1, validation_alias="MAX_UPLOAD_BYTES", description="A larger file is refused unread.")
    max_image_side: int = Field(1280, ge=32, validation_alias="MAX_IMAGE_SIDE", description="Pixels. A longer picture is scaled down.")
    max_pixels: int = Field(50_000_000, ge=1, validation_alias="MAX_IMAGE_PIXELS", description="A picture with more is never decoded.")
    max_letters: int = Field(400_000, ge=1, validation_alias="DOCUMENT_MAX_LETTERS", description="A document with more is refused.")
    max_pages: int = Field(2000, ge=1, validation_alias="DOCUMENT_MAX_PAGES", description="A document with more is refused.")
    read_seconds: float = Field(30.0, gt=0, validation_alias="DOCUMENT_SECONDS", description="Reading one document may take so long.")
    memory_bytes: int = Field(1 << 30, ge=1 << 28, validation_alias="DOCUMENT_MEMORY_BYTES", description="Of the process that reads it.")
