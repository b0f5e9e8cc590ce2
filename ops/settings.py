"""Settings of the local services, and the environment of child processes."""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.secrets import AmqpUrl, Secret, SecretUrl
from bus.settings import BusSettings

RABBITMQ_SEARCH_PATH = ":".join([
    "/usr/lib/rabbitmq/bin",  # Debian's own script; the one on PATH is a wrapper that requires the user `rabbitmq`
    "/usr/local/sbin",
    "/usr/sbin",
    "/opt/homebrew/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/home/linuxbrew/.linuxbrew/sbin",
])  # fmt: skip


class LocalSettings(BaseSettings):
    """A service whose URL is set is used as it is; for one without a URL, a local service is started."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    amqp_url: AmqpUrl | None = None
    database_url: SecretUrl | None = None
    database_direct_url: SecretUrl | None = Field(None, description="Is used together with a DATABASE_URL; see `BusSettings`.")
    store_url: str | None = None
    secret: Secret | None = Field(None, validation_alias="ATELIER_SECRET")
    sign_messages: str = Field("off", validation_alias="ATELIER_SIGN_MESSAGES")
    rabbitmq_host: str | None = Field(None, description="Names a broker where AMQP_URL is not set; see `RabbitMqSettings`.")
    aws_storage_bucket_name: str | None = Field(None, description="Names a store where STORE_URL is not set; see `StoreSettings`.")
    local_folder: Path = Field(
        Path(".local"), validation_alias="ATELIER_LOCAL_FOLDER", description="Where the local services keep their data."
    )
    may_install: bool = Field(
        True, validation_alias="ATELIER_MAY_INSTALL", description="False: call no package manager, and fetch no language model."
    )
    ready_seconds: float = Field(
        90.0,
        gt=0,
        validation_alias="ATELIER_READY_SECONDS",
        description="How long the processes of `atelier up` and `atelier demo` may take to become ready.",
    )
    server_path: str = Field(
        RABBITMQ_SEARCH_PATH,
        validation_alias="ATELIER_RABBITMQ_PATH",
        description="Folders, separated by colons, that are searched before PATH.",
    )

    @property
    def given_amqp_url(self) -> str | None:
        if self.amqp_url or not self.rabbitmq_host:
            return self.amqp_url.get_secret_value() if self.amqp_url else None
        return BusSettings().amqp_url.get_secret_value()

    @property
    def given_database_url(self) -> str | None:
        return self.database_url.get_secret_value() if self.database_url else None

    @property
    def given_direct_database_url(self) -> str | None:
        return self.database_direct_url.get_secret_value() if self.database_direct_url else None

    @property
    def given_store_url(self) -> str | None:
        return self.store_url or (f"s3://{self.aws_storage_bucket_name}" if self.aws_storage_bucket_name else None)


class BrokerUserSettings(BaseSettings):
    """The passwords of the broker's users; `atelier topology --users` generates those that are not set."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True, env_prefix="RABBITMQ_")

    publisher_password: Secret | None = Field(None, description="Of the broker's user `atelier-publisher`.")
    actor_password: Secret | None = Field(None, description="Of the broker's user `atelier-actor`.")
    gateway_password: Secret | None = Field(None, description="Of the broker's user `atelier-gateway`.")
    operator_password: Secret | None = Field(None, description="Of the broker's user `atelier-operator`.")

    publisher_foreign_queue: bool = Field(
        False, description="The user `atelier-publisher` may use the default exchange, which reaches every queue, as an older backend does."
    )

    @property
    def passwords(self) -> dict[str, str]:
        """The passwords that are set, by role."""
        names = [name for name in type(self).model_fields if name.endswith("_password")]
        given = {name.removesuffix("_password"): getattr(self, name) for name in names}
        return {role: password.get_secret_value() for role, password in given.items() if password}


def inherited_environment() -> dict[str, str]:
    """The environment that a child process starts from."""
    return dict(os.environ)


def extend_python_path(folder: Path) -> None:
    """Put `folder` first in the PYTHONPATH that child processes inherit."""
    others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([others] if others else [])])
