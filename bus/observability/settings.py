"""The settings of the health server, of the log and of tracing."""

import os
import re
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.masking import remember_secret, remember_url
from bus.secrets import SECRET_PREFIX, remember_words

SECRET_VARIABLE = re.compile(
    r"(token|secret|password|passwd|pass|api_?keys?|access_key|secret_key|credentials|authorization|cookie|headers)$", re.IGNORECASE
)
MIN_SECRET_CHARS = 8


class HealthSettings(BaseSettings):
    """Read from variables that begin with `HEALTH_`. Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="HEALTH_")

    port: int | None = Field(None, ge=0, le=65535, description="Port of /health/… and /metrics; empty: no server; 0: any free port.")
    host: str = Field("127.0.0.1", description="The address to listen on; 0.0.0.0 in a container. It requires no key: do not expose it.")
    check_seconds: float = Field(3.0, gt=0, description="A dependency that has not responded by then counts as unavailable.")
    keep_seconds: float = Field(1.0, ge=0, description="How long the results of the checks are cached.")


class LogSettings(BaseSettings):
    """Read from variables that begin with `LOG_`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="LOG_")

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)] = Field(
        "INFO", description="The least severe log entries that are written: DEBUG, INFO, WARNING or ERROR."
    )


class TracingSettings(BaseSettings):
    """Read from variables that begin with `OTEL_`, as OpenTelemetry names them."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="OTEL_")

    exporter_otlp_endpoint: str | None = Field(
        None, description="The OTLP collector over HTTP, e.g. `http://collector:4318`; empty: no traces."
    )
    service_name: str | None = Field(None, description="The name of the process in traces; default `atelier-<its steps>`.")
    sdk_disabled: bool = Field(False, description="True: no traces, whatever the other settings are.")


def remember_environment() -> None:
    """Mask the secrets of the environment in all texts: also those of libraries, such as HF_TOKEN and OTEL_EXPORTER_OTLP_HEADERS.

    They are found by the variable's name, or as the password in a URL; folders, numbers and short words are none.
    """
    for name, value in os.environ.items():
        remember_url(value)
        if SECRET_VARIABLE.search(name):
            for part in (value.strip(), *(re.split(r"[=:]", item, maxsplit=1)[-1] for item in re.split(r"[,\s]+", value))):
                if len(part) >= MIN_SECRET_CHARS and not part.startswith(("/", ".", "~")) and not part.isdecimal():
                    remember_secret(part)
                    remember_secret(unquote(part))  # values of OTEL_EXPORTER_OTLP_HEADERS are sent decoded
            if SECRET_PREFIX in value:
                remember_words(value)
