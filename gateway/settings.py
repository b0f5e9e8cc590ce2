"""The settings of the gateway."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewaySettings(BaseSettings):
    """Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="GATEWAY_")

    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="0 takes any free port.")
    question_seconds: float = Field(5.0, gt=0, description="How long an answer about a job is awaited.")
