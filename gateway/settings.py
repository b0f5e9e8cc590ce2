"""The settings of the gateway."""

from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.secrets import KeyList
from bus.settings import PathList, StringList
from gateway.middleware.addresses import UNIX_SOCKET
from gateway.middleware.public_url import parse_prefix, parse_public_url

DAY_SECONDS = 24 * 3600.0
API_NAMES = ("jobs", "dead-letters", "vertex", "ad-validation", "text", "openai", "console", "docs")


def names_of_object(value: Any) -> tuple[Any, ...]:
    """The names of an object, or names that were taken of one. Raises ValueError for anything else, such as a list of addresses."""
    if isinstance(value, dict | tuple):
        return tuple(value)
    raise ValueError('a JSON object from names to addresses is expected, such as {"ink": "s3://styles/ink.safetensors"}')


NameTuple = Annotated[tuple[str, ...], BeforeValidator(names_of_object)]
"""The names of a JSON object. The addresses that they stand for are the workers': the gateway keeps none."""


class GatewaySettings(BaseSettings):
    """Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="GATEWAY_", env_ignore_empty=True, populate_by_name=True)

    host: str = Field(
        "127.0.0.1",
        validation_alias=AliasChoices("GATEWAY_HOST", "LLM_HOST"),
        description="The address to listen on. Any but a loopback address needs API keys.",
    )
    port: int = Field(8080, ge=0, le=65535, validation_alias=AliasChoices("GATEWAY_PORT", "LLM_PORT"), description="0 takes any free port.")
    apis: StringList = Field(API_NAMES, description="The APIs to serve, separated by commas. All other paths are a 404.")
    api_keys: KeyList | None = Field(None, description="`name:key` pairs, separated by commas or spaces. The name is the tenant.")
    api_keys_file: Path | None = Field(None, description="The same, one per line; `#` begins a comment. Read again when it changes.")
    operators: StringList = Field(
        (), description="Names of keys that may see all tenants' jobs, order for any tenant, and manage dead letters."
    )
    cors_origins: StringList = Field((), description="Origins whose pages may call, separated by commas; `*` for any.")
    question_seconds: float = Field(5.0, gt=0, description="How long the reply to a query is awaited.")
    request_seconds: float = Field(300.0, gt=0, description="The deadline of a request without X-Request-Timeout.")
    job_seconds: float = Field(DAY_SECONDS, gt=0, description="The same for a job; one that has not started by then is dropped.")
    longest_seconds: float = Field(7 * DAY_SECONDS, gt=0, description="A longer X-Request-Timeout is reduced to it.")
    longest_wait_seconds: float = Field(300.0, gt=0, description="A longer ?wait is reduced to it.")
    keepalive_seconds: float = Field(15.0, gt=0, description="The interval of keepalive comments in an idle event stream.")
    max_body_bytes: int = Field(1 << 20, ge=1, description="A larger body is rejected unread. A message may be about as large.")
    max_upload_bytes: int = Field(10 << 20, ge=1, validation_alias="MAX_UPLOAD_BYTES", description="A larger upload is rejected.")
    watermark_fonts: PathList = Field(
        (),
        validation_alias="WATERMARK_FONTS",
        description="The workers' further fonts. Set at the gateway too, it leaves it to them to say which signatures cannot be drawn.",
    )
    overlay_fonts: PathList = Field((), validation_alias="OVERLAY_FONTS", description="The same for the texts of advertisements.")
    image_models: NameTuple = Field(
        (), validation_alias="IMAGE_MODELS", description="Set at the gateway as at the image workers, the console offers their names."
    )
    image_loras: NameTuple = Field((), validation_alias="IMAGE_LORAS", description="The same for the LoRAs that an order may name.")
    image_controlnets: NameTuple = Field((), validation_alias="IMAGE_CONTROLNETS", description="The same for ControlNets.")
    max_uploads: int = Field(32, ge=1, description="Concurrent requests with a body above GATEWAY_MAX_BODY_BYTES.")
    max_requests: int = Field(2000, ge=1, description="Concurrent requests; one more is a 503.")
    max_streams: int = Field(1000, ge=1, description="Concurrent event streams; one more is a 503.")
    tenant_requests: int = Field(1000, ge=1, description="Concurrent requests of one tenant; one more is a 429.")
    max_file_bytes: int = Field(64 << 20, ge=1, description="A larger file of a job cannot be downloaded.")
    rate_requests: int = Field(
        6000, ge=0, description="Requests of a key (or, without keys, of an address) in GATEWAY_RATE_SECONDS; 0: no limit."
    )
    rate_seconds: float = Field(60.0, gt=0, description="The window of the rate limit.")
    console_session_seconds: float = Field(12 * 3600.0, ge=60, description="How long a login to the console lasts after the last visit.")
    console_secure: bool = Field(False, description="The console is reached over https through a proxy: its cookies are `Secure`.")
    header_seconds: float = Field(10.0, gt=0, description="A connection whose next request has no complete headers by then is closed.")
    idle_seconds: float = Field(75.0, gt=0, description="How long a connection without a request stays open after a response.")
    body_seconds: float = Field(
        30.0, gt=0, description="A body that is so far behind GATEWAY_MIN_BYTES_PER_SECOND is a 408, and its connection is closed."
    )
    send_seconds: float = Field(
        60.0, gt=0, description="A client that is so far behind GATEWAY_MIN_BYTES_PER_SECOND in reading its response is disconnected."
    )
    min_bytes_per_second: int = Field(4096, ge=1, description="The slowest connection that may send and read without an end.")
    max_connections: int = Field(
        4000, ge=1, description="Open connections; for one more, the one that waits longest for its client is closed."
    )
    address_connections: int = Field(2000, ge=1, description="The same for the connections of one address.")
    max_header_bytes: int = Field(32 << 10, ge=1024, description="Longer headers are a 431; an address above half of it is a 414.")
    max_json_values: int = Field(50_000, ge=1, description="A JSON body with more values is a 413.")
    body_memory_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        description="Bodies above 64 KiB that are in memory; a tenant may hold half. Further ones wait, then are a 503.",
    )
    file_memory_bytes: int = Field(
        256 << 20, ge=1 << 20, description="Files that are being sent; a tenant may hold half. Further ones wait, then are a 503."
    )
    anonymous_requests: int = Field(
        64, ge=4, description="Concurrent requests without a valid key, such as the login page; an address may have a quarter."
    )
    grace_seconds: float = Field(10.0, gt=0, description="How long requests in progress may take after SIGTERM.")
    allowed_hosts: StringList = Field(
        (),
        description="Hosts of the Host header besides loopback ones and GATEWAY_HOST, `host` or `host:port`. Empty: with keys any, without "
        "keys no other.",
    )
    trusted_proxies: StringList = Field(
        (),
        description="Addresses or networks of proxies whose X-Forwarded-* or Forwarded headers are believed, such as `10.0.0.0/8`; `unix`: "
        "those without an address.",
    )
    root_path: str = Field(
        "", description="The path that proxies serve the gateway below, such as `/atelier`. They may strip it or leave it in the path."
    )
    public_url: str | None = Field(
        None,
        description="The address that clients use, `https://host[:port][/path]`. It wins over the Host header and over proxies' headers.",
    )
    failed_keys: int = Field(
        60, ge=0, description="Requests and logins without a valid key that an address may make in a minute; 0: no limit."
    )
    console_session_max_seconds: float = Field(
        24 * 3600.0, ge=60, description="How long after its login a session of the console ends, whatever it is used."
    )

    @property
    def max_upload_body_bytes(self) -> int:
        """The longest body of a route that takes files: two of them as base64, which is a third longer than the file."""
        return self.max_body_bytes + 2 * (self.max_upload_bytes * 4 // 3)

    @field_validator("apis")
    @classmethod
    def check_apis(cls, apis: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(apis) - set(API_NAMES):
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; the APIs are {', '.join(API_NAMES)}")
        return apis

    @property
    def public_origin(self) -> str | None:
        """Scheme and host of GATEWAY_PUBLIC_URL."""
        return parse_public_url(self.public_url)[0] if self.public_url else None

    @property
    def public_prefix(self) -> str:
        """Such as `/atelier`: the path of GATEWAY_PUBLIC_URL, else GATEWAY_ROOT_PATH."""
        return (parse_public_url(self.public_url)[1] if self.public_url else "") or self.root_path

    @field_validator("root_path")
    @classmethod
    def check_root_path(cls, path: str) -> str:
        return parse_prefix(path)

    @field_validator("public_url")
    @classmethod
    def check_public_url(cls, url: str | None) -> str | None:
        if url:
            parse_public_url(url)
        return url

    @model_validator(mode="after")
    def check_one_prefix(self) -> Self:
        """Two different prefixes would leave open which one clients use."""
        if self.root_path and self.public_prefix != self.root_path:
            raise ValueError(
                f"GATEWAY_ROOT_PATH is {self.root_path}, and the path of GATEWAY_PUBLIC_URL is {self.public_prefix}: set one of them"
            )
        return self

    @field_validator("trusted_proxies")
    @classmethod
    def check_trusted_proxies(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        """Neither `*` nor all addresses: then anybody could claim any address. IPv4 as it is compared: not written as IPv6."""
        for name in networks:
            network = ip_network(name, strict=False) if name != UNIX_SOCKET else None
            if network and network.prefixlen == 0:
                raise ValueError(f"{name} trusts every client: name the networks of the proxies")
            if isinstance(network, IPv6Network) and (mapped := network.network_address.ipv4_mapped):
                raise ValueError(f"{name} is an IPv4 network written as IPv6: write {mapped}/{network.prefixlen - 96}")
        return networks
