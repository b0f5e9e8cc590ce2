"""The settings of the post office."""

import os
import socket
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bus.net.tls import with_broker_ca, with_database_ca

Seconds = Annotated[float, Field(gt=0)]


class RabbitMqSettings(BaseSettings):
    """The broker by its parts, as the image worker that this replaces names it. Counts where AMQP_URL is not set."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="RABBITMQ_", populate_by_name=True)

    host: str | None = Field(None, description="The broker's name or address; with it AMQP_URL need not be set.")
    port: int = Field(5672, description="Where the broker listens.")
    user: str = Field("guest", description="The broker's user.")
    password: SecretStr = Field(
        SecretStr("guest"), validation_alias=AliasChoices("RABBITMQ_PASSWORD", "RABBITMQ_PASS"), description="The user's password."
    )

    @property
    def url(self) -> str:
        user, password = quote(self.user, safe=""), quote(self.password.get_secret_value(), safe="")
        return f"amqp://{user}:{password}@{self.host}:{self.port}/"


class BusSettings(BaseSettings):
    """Read from the environment once, at the edge of the process. Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    amqp_url: SecretStr = Field(
        description="`amqp://user:password@host:5672/vhost`; or RABBITMQ_HOST, _PORT, _USER and _PASSWORD (or _PASS)."
    )
    database_url: SecretStr | None = Field(None, description="`postgresql://…`. Without it nothing is remembered: at-least-once.")
    tls_ca_file: Path | None = Field(None, description="The authority behind `amqps://…` and `postgresql://…?sslmode=verify-full`, in PEM.")
    retry_delays_seconds: Annotated[tuple[Seconds, ...], NoDecode] = Field(
        (2.0, 30.0, 120.0), description="Wait before run 2, 3, 4; then the work is buried."
    )
    long_delays_seconds: Annotated[tuple[Seconds, ...], NoDecode] = Field(
        (600.0, 3600.0), description="Further rungs, for whoever asks for a longer wait."
    )
    publish_timeout_seconds: Seconds = Field(10.0, description="A publish that the broker has not confirmed by then is an error.")
    grace_seconds: Seconds = Field(30.0, description="After SIGTERM, how long running work may go on.")
    delivery_limit: int = Field(10, ge=1, le=19, description="A delivery that came back this often is buried. RabbitMQ 4 drops it at 20.")
    max_body_bytes: int = Field(1 << 20, ge=1, description="A larger message body is refused unread.")
    heartbeat_seconds: int = Field(20, ge=1, description="How often broker and process say that they live.")
    database_pool_size: int = Field(8, ge=1, description="Connections to the database, at most.")
    inbox_retention_days: float = Field(14.0, gt=0, description="How long an outcome is remembered.")
    worker: str = Field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}", description="This process, in logs and events.")

    @field_validator("retry_delays_seconds", "long_delays_seconds", mode="before")
    @classmethod
    def split_commas(cls, value: Any) -> Any:
        return [float(part) for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def assemble_amqp_url(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The broker by its parts, where it is not named whole."""
        if "amqp_url" not in values and (parts := RabbitMqSettings()).host:
            values["amqp_url"] = parts.url
        return values

    @property
    def delay_queue_seconds(self) -> tuple[float, ...]:
        """Every delay for which there is a queue, the shortest first."""
        return tuple(sorted({*self.retry_delays_seconds, *self.long_delays_seconds}))

    @property
    def broker_url(self) -> str:
        url = with_broker_ca(self.amqp_url.get_secret_value(), self.tls_ca_file)
        return url if "heartbeat=" in url else f"{url}{'&' if '?' in url else '?'}heartbeat={self.heartbeat_seconds}"

    @property
    def postgres_url(self) -> str | None:
        return with_database_ca(self.database_url.get_secret_value(), self.tls_ca_file) if self.database_url else None
