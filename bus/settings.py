"""The settings of the post office."""

import os
import socket
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0)]


class BusSettings(BaseSettings):
    """Read from the environment once, at the edge of the process. Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    amqp_url: SecretStr = Field(
        description="`amqp://user:password@host:5672/vhost`; or RABBITMQ_HOST, _PORT, _USER and _PASSWORD (or _PASS)."
    )
    database_url: SecretStr | None = Field(None, description="`postgresql://…`. Without it nothing is remembered: at-least-once.")
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
    heartbeat_seconds: int = Field(20, ge=1)
    database_pool_size: int = Field(8, ge=1)
    inbox_retention_days: float = Field(14.0, gt=0, description="How long an outcome is remembered.")
    worker: str = Field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}", description="This process, in logs and events.")

    @field_validator("retry_delays_seconds", "long_delays_seconds", mode="before")
    @classmethod
    def split(cls, value: Any) -> Any:
        return [float(part) for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def assemble(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The image worker that this replaces names its broker by parts."""
        host = os.environ.get("RABBITMQ_HOST")
        if "amqp_url" not in values and host:
            user = quote(os.environ.get("RABBITMQ_USER", "guest"), safe="")
            password = quote(os.environ.get("RABBITMQ_PASSWORD") or os.environ.get("RABBITMQ_PASS", "guest"), safe="")
            values["amqp_url"] = f"amqp://{user}:{password}@{host}:{os.environ.get('RABBITMQ_PORT', '5672')}/"
        return values

    @property
    def rungs(self) -> tuple[float, ...]:
        """Every delay for which there is a queue, the shortest first."""
        return tuple(sorted({*self.retry_delays_seconds, *self.long_delays_seconds}))

    @property
    def broker_url(self) -> str:
        url = self.amqp_url.get_secret_value()
        return url if "heartbeat=" in url else f"{url}{'&' if '?' in url else '?'}heartbeat={self.heartbeat_seconds}"
