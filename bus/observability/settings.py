"""The settings of the health server."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class HealthSettings(BaseSettings):
    """Read from variables that begin with `HEALTH_`. Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="HEALTH_")

    port: int | None = Field(None, ge=0, le=65535, description="Where /health/… and /metrics are; empty: nowhere; 0 takes any free port.")
    host: str = Field("127.0.0.1", description="The address to listen on; 0.0.0.0 in a container. It asks for no key: keep it inside.")
    check_seconds: float = Field(3.0, gt=0, description="A part that has not answered by then counts as away.")
    keep_seconds: float = Field(1.0, ge=0, description="So long an answer about the parts is good for whoever asks next.")


class TracingSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="OTEL_")

    exporter_otlp_endpoint: str | None = Field(
        None, description="Where traces go, over HTTP, e.g. `http://collector:4318`; empty: nowhere."
    )
    service_name: str | None = Field(None, description="How a process is called in traces; default `atelier-<its steps>`.")
    sdk_disabled: bool = Field(False, description="True: no traces, whatever else is set.")
