"""The settings of addresses from messages. A module of its own, so that a process whose steps call no HTTP server does not import httpx."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bus.settings import process_wide, split_commas

PortList = Annotated[tuple[int, ...], NoDecode, BeforeValidator(split_commas)]


class AddressSettings(BaseSettings):
    """Which URLs from messages may be reached."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True)

    allow_private_addresses: bool = Field(
        False,
        validation_alias=process_wide("ALLOW_PRIVATE_ADDRESSES"),
        description="Let URLs from messages reach private networks and this machine.",
    )
    allow_plain_http: bool = Field(
        False, validation_alias=process_wide("ALLOW_PLAIN_HTTP"), description="Let URLs from messages begin with http://."
    )
    tls_ca_file: Path | None = Field(
        None, validation_alias=process_wide("TLS_CA_FILE"), description="A private authority in PEM, trusted beside the public ones."
    )
    allowed_ports: PortList = Field(
        (), validation_alias=process_wide("ALLOWED_PORTS"), description="Ports that URLs from messages may use. Empty: any."
    )
