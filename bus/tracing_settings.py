"""The settings of traces, by the names that OpenTelemetry gives them. Its SDK reads the further ones, such as headers, by itself."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TracingSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="OTEL_")

    exporter_otlp_endpoint: str | None = Field(
        None, description="Where traces go, over HTTP, e.g. `http://collector:4318`; empty: nowhere."
    )
    service_name: str | None = Field(None, description="How a process is called in traces; default `atelier-<its steps>`.")
    sdk_disabled: bool = Field(False, description="True: no traces, whatever else is set.")
