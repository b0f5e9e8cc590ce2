"""The settings of broker and database, the process-wide settings of a worker, and the types of lists in settings."""

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bus.ids import MIN_SECRET_LENGTH
from bus.net.tls import with_broker_ca, with_database_ca
from bus.persistence.database_url import check_database_url
from bus.secrets import AmqpUrl, Secret, SecretUrl, StrippedText

Seconds = Annotated[float, Field(gt=0)]


def split_commas(value: Any) -> Any:
    """The items of `a,b`, as environment variables write lists."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


StringList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]
PathList = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(split_commas)]


def process_wide(name: str) -> AliasChoices:
    """The variable `ATELIER_<name>`; `<name>` alone, as earlier releases called it, is read where that one is not set."""
    return AliasChoices(f"ATELIER_{name}", name)


class RabbitMqSettings(BaseSettings):
    """The broker by host, port, user and password, as the image worker that this replaces names them. Used where AMQP_URL is not set."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="RABBITMQ_", populate_by_name=True)

    host: str | None = Field(None, description="The broker's host name or address; with it AMQP_URL need not be set.")
    port: int = Field(5672, description="The broker's port.")
    user: StrippedText = Field("guest", description="The broker's user.")
    password: Secret = Field(
        SecretStr("guest"), validation_alias=AliasChoices("RABBITMQ_PASSWORD", "RABBITMQ_PASS"), description="The user's password."
    )

    @property
    def url(self) -> str:
        user, password = quote(self.user, safe=""), quote(self.password.get_secret_value(), safe="")
        return f"amqp://{user}:{password}@{self.host}:{self.port}/"


class BusSettings(BaseSettings):
    """Read from the environment once, when a process starts. Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    amqp_url: AmqpUrl = Field(
        description="`amqp://user:password@host:5672/vhost`; or RABBITMQ_HOST, _PORT, _USER and _PASSWORD (or _PASS)."
    )
    database_url: SecretUrl | None = Field(None, description="`postgresql://…`. Without it no message is deduplicated: at-least-once.")
    database_direct_url: SecretUrl | None = Field(
        None,
        description="The same database without a pooler in transaction mode, such as PgBouncer. Needed where DATABASE_URL leads to one.",
    )
    secret: Secret | None = Field(
        None,
        validation_alias="ATELIER_SECRET",
        description="The secret of the installation, the same in every process, which keys message ids. `openssl rand -hex 32` makes one.",
    )
    sign_messages: Literal["off", "on"] = Field(
        "off",
        validation_alias="ATELIER_SIGN_MESSAGES",
        description="on: sign our own messages with ATELIER_SECRET, and refuse commands, events and replies without a valid signature.",
    )
    tls_ca_file: Path | None = Field(
        None,
        validation_alias=process_wide("TLS_CA_FILE"),
        description="A certificate authority for `amqps://…` and `postgresql://…?sslmode=verify-full`, in PEM.",
    )
    retry_delays_seconds: Annotated[tuple[Seconds, ...], NoDecode] = Field(
        (2.0, 30.0, 120.0),
        validation_alias=process_wide("RETRY_DELAYS_SECONDS"),
        description="Wait before attempt 2, 3, 4; then the message is dead-lettered.",
    )
    long_delays_seconds: Annotated[tuple[Seconds, ...], NoDecode] = Field(
        (600.0, 3600.0),
        validation_alias=process_wide("LONG_DELAYS_SECONDS"),
        description="Further delay queues, for errors that ask for a longer wait.",
    )
    publish_timeout_seconds: Seconds = Field(
        10.0,
        validation_alias=process_wide("PUBLISH_TIMEOUT_SECONDS"),
        description="A publish that the broker has not confirmed by then fails.",
    )
    grace_seconds: Seconds = Field(
        30.0, validation_alias=process_wide("GRACE_SECONDS"), description="After SIGTERM, how long running deliveries may continue."
    )
    delivery_limit: int = Field(
        10,
        ge=1,
        le=19,
        validation_alias=process_wide("DELIVERY_LIMIT"),
        description="A delivery returned this often is dead-lettered. RabbitMQ 4 drops it at 20.",
    )
    max_body_bytes: int = Field(
        1 << 20,
        ge=1,
        validation_alias=process_wide("MAX_BODY_BYTES"),
        description="A larger message body is dead-lettered without being parsed.",
    )
    heartbeat_seconds: int = Field(20, ge=1, validation_alias=process_wide("HEARTBEAT_SECONDS"), description="The AMQP heartbeat interval.")
    database_pool_size: int = Field(8, ge=1, description="The most connections to the database.")
    inbox_retention_days: float = Field(
        14.0, gt=0, validation_alias=process_wide("INBOX_RETENTION_DAYS"), description="How long the inbox keeps a result."
    )
    worker: str = Field(
        default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}",
        validation_alias=process_wide("WORKER"),
        description="The name of this process in logs and events.",
    )

    @field_validator("secret")
    @classmethod
    def check_secret_length(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret) < MIN_SECRET_LENGTH:
            cure = "make one with `openssl rand -hex 32`, the same for every process"
            raise ValueError(f"it has {len(secret)} characters, at least {MIN_SECRET_LENGTH} are needed: {cure}")
        return secret

    @field_validator("retry_delays_seconds", "long_delays_seconds", mode="before")
    @classmethod
    def parse_delays(cls, value: Any) -> Any:
        return [float(part) for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("database_url", "database_direct_url")
    @classmethod
    def check_database_urls(cls, value: SecretStr | None) -> SecretStr | None:
        return SecretStr(check_database_url(value.get_secret_value())) if value else None

    @model_validator(mode="before")
    @classmethod
    def assemble_amqp_url(cls, values: dict[str, Any]) -> dict[str, Any]:
        """AMQP_URL from the RABBITMQ_ variables, where it is not set itself."""
        if "amqp_url" not in values and (broker := RabbitMqSettings()).host:
            values["amqp_url"] = broker.url
        return values

    @model_validator(mode="after")
    def require_secret_to_sign(self) -> Self:
        if self.sign_messages == "on" and self.secret is None:
            raise ValueError("ATELIER_SIGN_MESSAGES=on needs ATELIER_SECRET, the same in every process: `openssl rand -hex 32` makes one")
        return self

    @property
    def secret_text(self) -> str | None:
        return self.secret.get_secret_value() if self.secret else None

    @property
    def delay_queue_seconds(self) -> tuple[float, ...]:
        """Every delay that has a delay queue, the shortest first."""
        return tuple(sorted({*self.retry_delays_seconds, *self.long_delays_seconds}))

    @property
    def broker_url(self) -> str:
        url = with_broker_ca(self.amqp_url.get_secret_value(), self.tls_ca_file)
        return url if "heartbeat=" in url else f"{url}{'&' if '?' in url else '?'}heartbeat={self.heartbeat_seconds}"

    @property
    def postgres_url(self) -> str | None:
        return with_database_ca(self.database_url.get_secret_value(), self.tls_ca_file) if self.database_url else None

    @property
    def direct_postgres_url(self) -> str | None:
        return with_database_ca(self.database_direct_url.get_secret_value(), self.tls_ca_file) if self.database_direct_url else None
